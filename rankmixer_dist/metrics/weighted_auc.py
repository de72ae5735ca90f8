"""AUC of weighted rows, without rounding before the last division."""

import math
from dataclasses import dataclass
from typing import Self

import numpy as np
from numpy.typing import NDArray

from rankmixer_dist.metrics.auc_result import AUCResult, with_interval
from rankmixer_dist.metrics.exact_products import carried, segment_products, shares, to_ints, to_limbs
from rankmixer_dist.metrics.exact_sum import ExactSums
from rankmixer_dist.metrics.keys import key_order, score_keys


def weighted_auc(scores: NDArray[np.floating], labels: NDArray[np.bool_], weights: NDArray[np.float64]) -> AUCResult:
    """AUC of checked columns [rows] with weights above 0, O(n log n) time.

    AUC = sum_ij w_i w_j (1[x_i > y_j] + 1[x_i = y_j] / 2) / (sum_i w_i sum_j w_j) over positives i and negatives j,
    counted in integers (floats are whole multiples of a power of two) and divided once: the correctly rounded value
    for any float64 weights, and for whole weights that of the rows repeated.

    Variance: that of DeLong with row i's share s_i = w_i / sum w in place of 1 / P, which is the linearisation of a
    ratio of weighted sums: P / (P - 1) sum_i s_i^2 (V10_i - AUC)^2, and the same over the negatives. Equal weights
    give DeLong's.
    """
    positive, negative = (_WeightedClass.of(scores[own], weights[own]) for own in (labels, ~labels))
    positives, negatives = len(positive.scores), len(negative.scores)
    if positives == 0 or negatives == 0:
        return AUCResult(math.nan, math.nan, math.nan, math.nan, positives, negatives)
    wins = negative.doubled_weight_below(positive.scores)
    won = to_ints(segment_products(positive.limbs, wins, np.zeros(1, np.int64)))[0]
    auc = won / (2 * positive.total * negative.total)
    if positives == 1 or negatives == 1:
        return AUCResult(auc, math.nan, math.nan, math.nan, positives, negatives)
    losses = positive.doubled_weight_below(negative.scores)
    variance = positive.variance(shares(wins, 2 * negative.total), auc)
    # The share of positives above is one minus the share below, so the variance is the same.
    variance += negative.variance(shares(losses, 2 * positive.total), 1 - auc)
    return with_interval(auc, variance, positives, negatives)


@dataclass(frozen=True)
class _WeightedClass:
    """The rows of one class: `scores` [rows] ascending, their weights as `limbs` [limbs, rows], the sum of these."""

    scores: NDArray[np.floating]
    limbs: NDArray[np.int64]
    total: int

    @classmethod
    def of(cls, scores: NDArray[np.floating], weights: NDArray[np.float64]) -> Self:
        order = key_order(score_keys(scores).astype(np.uint64))
        limbs, _ = to_limbs(weights[order])
        return cls(scores[order], limbs, to_ints(limbs.sum(axis=1, keepdims=True))[0])

    def doubled_weight_below(self, scores: NDArray[np.floating]) -> NDArray[np.int64]:
        """Twice the weight below each score [scores], that of equal ones counted half; limbs below 2**16."""
        below = np.zeros((len(self.limbs), len(self.scores) + 1), np.int64)
        np.cumsum(self.limbs, axis=1, out=below[:, 1:])
        left, right = (np.searchsorted(self.scores, scores, side=side) for side in ("left", "right"))
        return carried(below[:, left] + below[:, right])

    def variance(self, values: NDArray[np.float64], mean: float) -> float:
        """Of the weighted mean of values [rows]."""
        # Summed exactly, so that the order of tied rows does not show.
        squares = ExactSums(1)
        squares.add((shares(self.limbs, self.total) * (values - mean)) ** 2, np.zeros(len(values), np.int64))
        return float(squares.rounded_sums()[0]) * len(values) / (len(values) - 1)
