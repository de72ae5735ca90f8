"""All figures of one task, as eval.json holds them."""

import math
from typing import TypedDict

from numpy.typing import ArrayLike

from rankmixer_dist.metrics.auc import exact_auc
from rankmixer_dist.metrics.auc_result import AUCResult
from rankmixer_dist.metrics.calibration import Calibration, CalibrationResult
from rankmixer_dist.metrics.pr_auc import average_precision
from rankmixer_dist.metrics.row_state import RowState
from rankmixer_dist.metrics.rows import check_labels, check_probabilities, check_user_ids
from rankmixer_dist.metrics.user_auc import exact_user_auc
from rankmixer_dist.metrics.user_totals import UserAUCResult


class TaskFigures(TypedDict):
    """One task's entry in eval.json; None where a figure is undefined (a single class, no row)."""

    auc: float | None
    pr_auc: float | None
    uauc: float | None
    uauc_unweighted: float | None
    logloss: float | None
    ne: float | None
    calibration: float | None
    auc_ci95: list[float | None]
    positives: int
    users_scored: int


class TaskMetrics(RowState):
    """Mergeable metrics of one binary task over shared rows; bit-identical for every split of the rows.

    Keeps the rows once: 13 bytes a row with float32 scores, 8 more with weights. Everything is computed from them in
    `compute`.
    """

    checks = {"scores": check_probabilities, "labels": check_labels, "user_ids": check_user_ids}

    def update(
        self, scores: ArrayLike, labels: ArrayLike, user_ids: ArrayLike, weights: ArrayLike | None = None
    ) -> None:
        """Add rows: scores [rows] probabilities, float32 or float64, labels [rows] of 0 and 1, user_ids [rows] and
        weights [rows], 1 each if left out.

        Raises:
            ValueError: scores that are NaN or outside [0, 1], labels other than 0 and 1, ids that are no int64,
                weights that
                `check_weights` refuses, lengths that differ.
        """
        self._rows.append({"scores": scores, "labels": labels, "user_ids": user_ids}, weights)

    def compute(self) -> TaskFigures:
        """The task's entry in eval.json, plain Python numbers, None for NaN."""
        columns = self._rows.arrays()
        user_auc = exact_user_auc(**columns)
        del columns["user_ids"]
        auc = exact_auc(**columns)
        calibration = Calibration()
        calibration.update(**columns)
        return task_figures(auc, average_precision(**columns), user_auc, calibration.compute())


def task_figures(auc: AUCResult, pr_auc: float, user_auc: UserAUCResult, calibration: CalibrationResult) -> TaskFigures:
    """The task's entry in eval.json from results over the same rows."""
    return {
        "auc": _none_if_nan(auc.auc),
        "pr_auc": _none_if_nan(pr_auc),
        "uauc": _none_if_nan(user_auc.uauc),
        "uauc_unweighted": _none_if_nan(user_auc.uauc_unweighted),
        "logloss": _none_if_nan(calibration.logloss),
        "ne": _none_if_nan(calibration.ne),
        "calibration": _none_if_nan(calibration.calibration),
        "auc_ci95": [_none_if_nan(auc.ci95_low), _none_if_nan(auc.ci95_high)],
        "positives": auc.positives,
        "users_scored": user_auc.users_scored,
    }


def _none_if_nan(value: float) -> float | None:
    return None if math.isnan(value) else value
