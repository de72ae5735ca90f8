"""Exact ranking and calibration metrics as states that update, merge and compute; numpy only."""

from rankmixer_dist.metrics.auc import AUC
from rankmixer_dist.metrics.auc_counts import AUCCounts
from rankmixer_dist.metrics.auc_result import AUCResult
from rankmixer_dist.metrics.calibration import Calibration, CalibrationResult, ReliabilityBins
from rankmixer_dist.metrics.paired import PairedAUC, PairedAUCResult, PairedUserAUC, PairedUserAUCResult
from rankmixer_dist.metrics.pr_auc import PRAUC
from rankmixer_dist.metrics.tasks import TaskFigures, TaskMetrics
from rankmixer_dist.metrics.user_auc import UserAUC
from rankmixer_dist.metrics.user_resampling import BootstrapResult, UserBootstrap
from rankmixer_dist.metrics.user_totals import UserAUCResult, UserAUCs, UserAUCTotals
from rankmixer_dist.metrics.value_counts import ValueCounts
from rankmixer_dist.metrics.windows import Window, mean_over_windows

__all__ = [
    "AUC",
    "PRAUC",
    "AUCCounts",
    "AUCResult",
    "BootstrapResult",
    "Calibration",
    "CalibrationResult",
    "PairedAUC",
    "PairedAUCResult",
    "PairedUserAUC",
    "PairedUserAUCResult",
    "ReliabilityBins",
    "TaskFigures",
    "TaskMetrics",
    "UserAUC",
    "UserAUCResult",
    "UserAUCTotals",
    "UserAUCs",
    "UserBootstrap",
    "ValueCounts",
    "Window",
    "mean_over_windows",
]
