"""How far predicted probabilities can be trusted: log loss, normalised entropy, calibration, reliability bins."""

import math
from dataclasses import dataclass
from typing import Self

import numpy as np
from numpy.typing import ArrayLike, NDArray

from rankmixer_dist.metrics.exact_sum import ExactSums
from rankmixer_dist.metrics.rows import (
    check_labels,
    check_probabilities,
    check_same_length,
    check_weights,
)

# The distance from 1 to the float32 below it: a sigmoid that saturated in float32 costs at most 24 ln 2 = 16.6 nats.
LOGLOSS_CLIP = 2.0**-24

# Bins of half a unit of log-odds from -10 to 10: a task with 0.1 % positives is resolved as well as one with 50 %.
BIN_EDGES = np.concatenate(([0.0], 1 / (1 + np.exp(-np.linspace(-9.5, 9.5, 39))), [1.0]))
NUM_BINS = len(BIN_EDGES) - 1


@dataclass(frozen=True)
class CalibrationResult:
    """Means over all rows, weighted if weights were given; what is undefined is NaN.

    Attributes:
        logloss: mean of -ln p(label), nats a row, p clipped to [2**-24, 1 - 2**-24].
        ne: normalised entropy, logloss / entropy of the base rate (He et al., ADKDD 2014); 1 is a constant
            prediction of the base rate, lower is better. NaN with a single class.
        calibration: sum of predictions / number of positives; 1 is unbiased. NaN without positives.
        rows, positives: counts, whatever the weights.
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
        rate: [bins] share of positives among the rows, NaN where a bin is empty.
        calibration: [bins] sum of predictions / number of positives, NaN where there are none.

    The last three are weighted if weights were given.
    """

    edges: NDArray[np.float64]
    rows: NDArray[np.int64]
    positives: NDArray[np.int64]
    mean_score: NDArray[np.float64]
    rate: NDArray[np.float64]
    calibration: NDArray[np.float64]


class Calibration:
    """Mergeable calibration figures in constant memory (6 KB, 18 with weights); bit-identical for every split.

    The choice that makes it so: each row's loss is a function of that row alone, and the sums of losses and of
    predictions are exact integers (`ExactSums`), rounded once in `compute`. With weights each product of a weight
    and a loss or prediction is rounded once, still by the row alone.
    """

    def __init__(self) -> None:
        self._rows = np.zeros(NUM_BINS, np.int64)
        self._positives = np.zeros(NUM_BINS, np.int64)
        self._score_sums = ExactSums(NUM_BINS)
        self._loss_sum = ExactSums(1)
        # None as long as every weight is 1: the counts say it.
        self._weight_sums: _WeightSums | None = None

    def update(self, scores: ArrayLike, labels: ArrayLike, weights: ArrayLike | None = None) -> None:
        """Add rows: scores [rows] probabilities, float32 or float64, labels [rows] of 0 and 1, weights [rows] or 1.

        Raises:
            ValueError: scores that are NaN or outside [0, 1], labels other than 0 and 1, weights that
                `check_weights` refuses, lengths that differ.
        """
        scores, labels = check_probabilities(scores), check_labels(labels)
        check_same_length(scores=scores, labels=labels)
        if weights is not None:
            weights = check_weights(weights)
            check_same_length(scores=scores, weights=weights)
            kept = weights > 0
            scores, labels, weights = scores[kept], labels[kept], weights[kept]
            self._weight_sums = self._weights()
        # Minus zero would show a sign bit to the exact sums.
        p = scores.astype(np.float64) + 0.0
        bins = np.searchsorted(BIN_EDGES[1:-1], p, side="right")
        self._rows += np.bincount(bins, minlength=NUM_BINS)
        self._positives += np.bincount(bins[labels], minlength=NUM_BINS)
        if self._weight_sums is not None:
            row_weights = np.ones(len(p)) if weights is None else weights
            self._weight_sums.of_rows.add(row_weights, bins)
            self._weight_sums.of_positives.add(row_weights[labels], bins[labels])
        self._score_sums.add(p if weights is None else p * weights, bins)
        p = np.clip(p, LOGLOSS_CLIP, 1 - LOGLOSS_CLIP)
        losses = np.concatenate((-np.log(p[labels]), -np.log1p(-p[~labels])))
        if weights is not None:
            losses *= np.concatenate((weights[labels], weights[~labels]))
        self._loss_sum.add(losses, np.zeros(len(losses), np.int64))

    def merge(self, other: Self) -> None:
        """Add the rows of another state to this one."""
        if self._weight_sums is not None or other._weight_sums is not None:
            mine, theirs = self._weights(), other._weights()
            mine.of_rows.merge(theirs.of_rows)
            mine.of_positives.merge(theirs.of_positives)
            self._weight_sums = mine
        self._rows = self._rows + other._rows
        self._positives = self._positives + other._positives
        self._score_sums.merge(other._score_sums)
        self._loss_sum.merge(other._loss_sum)

    def compute(self) -> CalibrationResult:
        """Log loss, normalised entropy and calibration over all rows so far."""
        weights = self._weights()
        logloss = self._loss_sum.ratio(weights.of_rows)
        rate = weights.of_positives.ratio(weights.of_rows)
        ne = math.nan
        if 0 < rate < 1:
            ne = logloss / -(rate * math.log(rate) + (1 - rate) * math.log1p(-rate))
        return CalibrationResult(
            logloss=logloss,
            ne=ne,
            calibration=self._score_sums.ratio(weights.of_positives),
            rows=int(self._rows.sum()),
            positives=int(self._positives.sum()),
        )

    def reliability(self) -> ReliabilityBins:
        """Predicted against observed, bin by bin, for a reliability plot."""
        weights = self._weights()
        return ReliabilityBins(
            edges=BIN_EDGES.copy(),
            rows=self._rows.copy(),
            positives=self._positives.copy(),
            mean_score=self._score_sums.ratios(weights.of_rows),
            rate=weights.of_positives.ratios(weights.of_rows),
            calibration=self._score_sums.ratios(weights.of_positives),
        )

    def _weights(self) -> "_WeightSums":
        if self._weight_sums is not None:
            return self._weight_sums
        return _WeightSums(ExactSums.of_counts(self._rows), ExactSums.of_counts(self._positives))


@dataclass(frozen=True)
class _WeightSums:
    """Sums of weights in each bin, of all rows and of the positive ones."""

    of_rows: ExactSums
    of_positives: ExactSums
