"""All figures of one task, as eval.json holds them."""

import math
from collections.abc import Mapping
from typing import Self, TypedDict

from numpy.typing import ArrayLike, NDArray

from rankmixer_dist.metrics.auc import exact_auc
from rankmixer_dist.metrics.calibration import Calibration
from rankmixer_dist.metrics.rows import (
    RowBuffer,
    check_array_names,
    check_labels,
    check_probabilities,
    check_user_ids,
)
from rankmixer_dist.metrics.user_auc import exact_user_auc


class TaskFigures(TypedDict):
    """One task's entry in eval.json; None where a figure is undefined (a single class, no row)."""

    auc: float | None
    uauc: float | None
    uauc_unweighted: float | None
    logloss: float | None
    ne: float | None
    calibration: float | None
    auc_ci95: list[float | None]
    positives: int
    users_scored: int


class TaskMetrics:
    """Mergeable metrics of one binary task over shared rows; bit-identical for every split of the rows.

    Keeps the rows once: 13 bytes a row with float32 scores. Everything is computed from them in `compute`.
    """

    def __init__(self) -> None:
        self._rows = RowBuffer("scores", "labels", "user_ids")

    def update(self, scores: ArrayLike, labels: ArrayLike, user_ids: ArrayLike) -> None:
        """Add rows: scores [rows] probabilities, float32 or float64, labels [rows] of 0 and 1, user_ids [rows].

        Raises:
            ValueError: scores that are NaN or outside [0, 1], labels other than 0 and 1, ids that are no int64,
                lengths that differ.
        """
        self._rows.append(
            scores=check_probabilities(scores), labels=check_labels(labels), user_ids=check_user_ids(user_ids)
        )

    def merge(self, other: Self) -> None:
        """Add the rows of another state to this one."""
        self._rows.merge(other._rows)

    def compute(self) -> TaskFigures:
        """The task's entry in eval.json, plain Python numbers, None for NaN."""
        scores, labels, user_ids = (self._rows.column(name) for name in ("scores", "labels", "user_ids"))
        auc = exact_auc(scores, labels)
        user_auc = exact_user_auc(scores, labels, user_ids)
        calibration = Calibration()
        calibration.update(scores, labels)
        probabilistic = calibration.compute()
        return {
            "auc": _none_if_nan(auc.auc),
            "uauc": _none_if_nan(user_auc.uauc),
            "uauc_unweighted": _none_if_nan(user_auc.uauc_unweighted),
            "logloss": _none_if_nan(probabilistic.logloss),
            "ne": _none_if_nan(probabilistic.ne),
            "calibration": _none_if_nan(probabilistic.calibration),
            "auc_ci95": [_none_if_nan(auc.ci95_low), _none_if_nan(auc.ci95_high)],
            "positives": auc.positives,
            "users_scored": user_auc.users_scored,
        }

    def to_arrays(self) -> dict[str, NDArray]:
        """The state as `scores` [rows], `labels` [rows] bool and `user_ids` [rows] int64."""
        return self._rows.to_arrays()

    @classmethod
    def from_arrays(cls, arrays: Mapping[str, NDArray]) -> Self:
        """The state that `to_arrays` was called on.

        Raises:
            ValueError: other array names, or values that `update` refuses.
        """
        check_array_names(arrays, {"scores", "labels", "user_ids"})
        state = cls()
        state.update(**arrays)
        return state


def _none_if_nan(value: float) -> float | None:
    return None if math.isnan(value) else value
