"""Exact ranking and calibration metrics as states that update, merge, compute, save and load; numpy only."""

from rankmixer_dist.metrics.auc import AUC
from rankmixer_dist.metrics.auc_counts import AUCCounts
from rankmixer_dist.metrics.auc_result import AUCResult
from rankmixer_dist.metrics.calibration import Calibration, CalibrationResult, ReliabilityBins
from rankmixer_dist.metrics.histogram_auc import HistogramAUC, HistogramAUCResult
from rankmixer_dist.metrics.paired import PairedAUC, PairedAUCResult, PairedUserAUC, PairedUserAUCResult
from rankmixer_dist.metrics.pr_auc import PRAUC
from rankmixer_dist.metrics.slices import MAX_SLICES, SlicedMetrics, SliceFigures
from rankmixer_dist.metrics.spilled import SpilledAUC, SpilledUserAUC
from rankmixer_dist.metrics.tasks import TaskFigures, TaskMetrics
from rankmixer_dist.metrics.user_auc import UserAUC
from rankmixer_dist.metrics.user_resampling import BootstrapResult, UserBootstrap
from rankmixer_dist.metrics.user_totals import UserAUCResult, UserAUCs, UserAUCTotals
from rankmixer_dist.metrics.value_counts import ValueCounts
from rankmixer_dist.metrics.windows import Window, WindowMetrics, mean_over_windows

__all__ = [
    "AUC",
    "MAX_SLICES",
    "PRAUC",
    "AUCCounts",
    "AUCResult",
    "BootstrapResult",
    "Calibration",
    "CalibrationResult",
    "HistogramAUC",
    "HistogramAUCResult",
    "PairedAUC",
    "PairedAUCResult",
    "PairedUserAUC",
    "PairedUserAUCResult",
    "ReliabilityBins",
    "SliceFigures",
    "SlicedMetrics",
    "SpilledAUC",
    "SpilledUserAUC",
    "TaskFigures",
    "TaskMetrics",
    "UserAUC",
    "UserAUCResult",
    "UserAUCTotals",
    "UserAUCs",
    "UserBootstrap",
    "ValueCounts",
    "Window",
    "WindowMetrics",
    "mean_over_windows",
]
