"""How far predicted probabilities can be trusted: log loss, normalised entropy, calibration, reliability bins."""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Self

import numpy as np
from numpy.typing import ArrayLike, NDArray

from rankmixer_dist.metrics.exact_sum import ExactSums
from rankmixer_dist.metrics.rows import check_array_names, check_labels, check_probabilities, check_same_length

# The distance from 1 to the float32 below it: a sigmoid that saturated in float32 costs at most 24 ln 2 = 16.6 nats.
LOGLOSS_CLIP = 2.0**-24

# Bins of half a unit of log-odds from -10 to 10: a task with 0.1 % positives is resolved as well as one with 50 %.
BIN_EDGES = np.concatenate(([0.0], 1 / (1 + np.exp(-np.linspace(-9.5, 9.5, 39))), [1.0]))
NUM_BINS = len(BIN_EDGES) - 1


@dataclass(frozen=True)
class CalibrationResult:
    """Means over all rows; what is undefined is NaN.

    Attributes:
        logloss: mean of -ln p(label), nats a row, p clipped to [2**-24, 1 - 2**-24].
        ne: normalised entropy, logloss / entropy of the base rate (He et al., ADKDD 2014); 1 is a constant
            prediction of the base rate, lower is better. NaN with a single class.
        calibration: sum of predictions / number of positives; 1 is unbiased. NaN without positives.
        rows, positives: counts.
    """

    logloss: float
    ne: float
    calibration: float
    rows: int
    positives: int


@dataclass(frozen=True)
class ReliabilityBins:
    """Rows grouped by predicted probability; bin i holds edges[i] <= p < edges[i + 1], the last one also p = 1.

    Attributes:
        edges: [bins + 1] probabilities, equally far apart in log-odds.
        rows, positives: [bins] counts.
        mean_score: [bins] mean predicted probability, NaN where a bin is empty.
    """

    edges: NDArray[np.float64]
    rows: NDArray[np.int64]
    positives: NDArray[np.int64]
    mean_score: NDArray[np.float64]


class Calibration:
    """Mergeable calibration figures in constant memory (6 KB); bit-identical for every split of the rows.

    The choice that makes it so: each row's loss is a function of that row alone, and the sums of losses and of
    predictions are exact integers (`ExactSums`), rounded once in `compute`.
    """

    def __init__(self) -> None:
        self._rows = np.zeros(NUM_BINS, np.int64)
        self._positives = np.zeros(NUM_BINS, np.int64)
        self._score_sums = ExactSums(NUM_BINS)
        self._loss_sum = ExactSums(1)

    def update(self, scores: ArrayLike, labels: ArrayLike) -> None:
        """Add rows: scores [rows] probabilities, float32 or float64, labels [rows] of 0 and 1.

        Raises:
            ValueError: scores that are NaN or outside [0, 1], labels other than 0 and 1, lengths that differ.
        """
        scores, labels = check_probabilities(scores), check_labels(labels)
        check_same_length(scores=scores, labels=labels)
        # Minus zero would show a sign bit to the exact sums.
        p = scores.astype(np.float64) + 0.0
        bins = np.searchsorted(BIN_EDGES[1:-1], p, side="right")
        self._rows += np.bincount(bins, minlength=NUM_BINS)
        self._positives += np.bincount(bins[labels], minlength=NUM_BINS)
        self._score_sums.add(p, bins)
        p = np.clip(p, LOGLOSS_CLIP, 1 - LOGLOSS_CLIP)
        losses = np.concatenate((-np.log(p[labels]), -np.log1p(-p[~labels])))
        self._loss_sum.add(losses, np.zeros(len(losses), np.int64))

    def merge(self, other: Self) -> None:
        """Add the rows of another state to this one."""
        self._rows = self._rows + other._rows
        self._positives = self._positives + other._positives
        self._score_sums.merge(other._score_sums)
        self._loss_sum.merge(other._loss_sum)

    def compute(self) -> CalibrationResult:
        """Log loss, normalised entropy and calibration over all rows so far."""
        rows, positives = int(self._rows.sum()), int(self._positives.sum())
        logloss = self._loss_sum.rounded_ratio(rows) if rows else math.nan
        ne = math.nan
        if 0 < positives < rows:
            rate = positives / rows
            ne = logloss / -(rate * math.log(rate) + (1 - rate) * math.log1p(-rate))
        calibration = self._score_sums.rounded_ratio(positives) if positives else math.nan
        return CalibrationResult(logloss=logloss, ne=ne, calibration=calibration, rows=rows, positives=positives)

    def reliability(self) -> ReliabilityBins:
        """Predicted against observed, bin by bin, for a reliability plot."""
        mean_score = np.full(NUM_BINS, math.nan)
        np.divide(self._score_sums.rounded_sums(), self._rows, out=mean_score, where=self._rows > 0)
        return ReliabilityBins(BIN_EDGES.copy(), self._rows.copy(), self._positives.copy(), mean_score)

    def to_arrays(self) -> dict[str, NDArray]:
        """The state: `rows` and `positives` [bins] int64, `score_sums` [bins, 144] and `loss_sum` [1, 144] uint8."""
        return {
            "rows": self._rows.copy(),
            "positives": self._positives.copy(),
            "score_sums": self._score_sums.to_array(),
            "loss_sum": self._loss_sum.to_array(),
        }

    @classmethod
    def from_arrays(cls, arrays: Mapping[str, NDArray]) -> Self:
        """The state that `to_arrays` was called on.

        Raises:
            ValueError: other array names.
        """
        check_array_names(arrays, {"rows", "positives", "score_sums", "loss_sum"})
        state = cls()
        state._rows, state._positives = arrays["rows"].copy(), arrays["positives"].copy()
        state._score_sums = ExactSums.from_array(arrays["score_sums"])
        state._loss_sum = ExactSums.from_array(arrays["loss_sum"])
        return state
