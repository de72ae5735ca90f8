"""Exact ranking and calibration metrics as states that update, merge and compute; numpy only."""

from rankmixer_dist.metrics.auc import AUC, AUCResult
from rankmixer_dist.metrics.calibration import Calibration, CalibrationResult, ReliabilityBins
from rankmixer_dist.metrics.tasks import TaskFigures, TaskMetrics
from rankmixer_dist.metrics.user_auc import UserAUC, UserAUCResult

__all__ = [
    "AUC",
    "AUCResult",
    "Calibration",
    "CalibrationResult",
    "ReliabilityBins",
    "TaskFigures",
    "TaskMetrics",
    "UserAUC",
    "UserAUCResult",
]
