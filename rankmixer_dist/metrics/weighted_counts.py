"""Exact sums behind the AUC of weighted rows and its variance, which add up over ranges of scores."""

import math
from collections.abc import Iterable
from dataclasses import dataclass
from functools import reduce
from typing import Self

import numpy as np
from numpy.typing import NDArray

from rankmixer_dist.metrics.auc_result import AUCResult, with_interval
from rankmixer_dist.metrics.exact_products import UNIT_EXPONENT, carried, scaled, segment_products, to_ints, to_limbs
from rankmixer_dist.metrics.keys import key_order
from rankmixer_dist.metrics.pr_auc import ClassTotals

# Products of limbs are made for some rows at a time, in the cache.
PRODUCT_ROWS = 1 << 13


@dataclass(frozen=True)
class WeightedClassSums:
    """Integers over the rows of one class, w being a weight and b twice the other class's weight below, in units of
    2**-1088.

    Attributes:
        rows: how many.
        weight: sum w.
        won: sum w b.
        squares, won_squares, squared_wins: sums of w^2, w^2 b, w^2 b^2.
    """

    rows: int
    weight: int
    won: int
    squares: int
    won_squares: int
    squared_wins: int

    @classmethod
    def of_rows(cls, limbs: NDArray[np.int64], below: NDArray[np.int64], shift: int) -> Self:
        """Sums of rows whose w and b are limbs [limbs, rows] below 2**16, in multiples of 2**shift units."""
        won = squares = won_squares = squared_wins = 0
        for start in range(0, limbs.shape[1], PRODUCT_ROWS):
            w, b = (part[:, start : start + PRODUCT_ROWS] for part in (limbs, below))
            wins = _row_products(w, b)
            won += _total(wins)
            squares += _dot(w, w)
            won_squares += _dot(w, wins)
            squared_wins += _dot(wins, wins)
        weight = _total(limbs)
        sums = (weight << shift, won << 2 * shift, squares << 2 * shift)
        return cls(limbs.shape[1], *sums, won_squares << 3 * shift, squared_wins << 4 * shift)

    def above(self, more: int) -> Self:
        """The same rows with `more` added to every b."""
        return type(self)(
            rows=self.rows,
            weight=self.weight,
            won=self.won + more * self.weight,
            squares=self.squares,
            won_squares=self.won_squares + more * self.squares,
            squared_wins=self.squared_wins + 2 * more * self.won_squares + more**2 * self.squares,
        )

    def plus(self, other: Self) -> Self:
        """Sums over both."""
        pairs = zip(vars(self).values(), vars(other).values(), strict=True)
        return type(self)(*(mine + theirs for mine, theirs in pairs))

    def variance(self, other_weight: int) -> float:
        """Estimated variance of the weighted mean of b / (2 other_weight), rounded once; at least two rows."""
        # sum (w / W)^2 (x - mean)^2, where mean = won / W in the unit of b, times rows / (rows - 1).
        spread = self.squared_wins * self.weight**2 - 2 * self.won * self.weight * self.won_squares
        spread += self.won**2 * self.squares
        return (self.rows * spread) / ((self.rows - 1) * self.weight**4 * (2 * other_weight) ** 2)


@dataclass(frozen=True)
class WeightedAUCCounts:
    """`AUCCounts` for weighted rows: all that AUC and variance need of the rows of a range of scores, as integers."""

    positive: WeightedClassSums
    negative: WeightedClassSums

    @classmethod
    def of_rows(
        cls, keys: NDArray[np.uint64], labels: NDArray[np.bool_], weights: NDArray[np.float64]
    ) -> "WeightedAUCCounts":
        """Counts of rows: keys [rows], ordered as the scores, labels [rows], weights [rows] above 0."""
        order = key_order(keys)
        keys, labels = keys[order], labels[order]
        limbs, exponent = to_limbs(weights[order])
        shift = exponent - UNIT_EXPONENT
        positive, negative = ((keys[own], limbs[:, own]) for own in (labels, ~labels))
        return cls(
            *(
                WeightedClassSums.of_rows(own[1], _doubled_weight_below(*other, own[0]), shift)
                for own, other in ((positive, negative), (negative, positive))
            )
        )

    @classmethod
    def of_ties(cls, chunks: Iterable[tuple[NDArray[np.bool_], NDArray[np.float64]]]) -> "WeightedAUCCounts":
        """Counts of rows that have one score: chunks of labels and weights [rows]."""
        one_score = (cls._of_one_score(labels, weights) for labels, weights in chunks)
        positive, negative = reduce(lambda a, b: (a[0].plus(b[0]), a[1].plus(b[1])), one_score, (_NO_ROWS, _NO_ROWS))
        # A tie is half a win, so of twice the weight of the other class each row wins one half.
        return cls(positive.above(negative.weight), negative.above(positive.weight))

    @staticmethod
    def _of_one_score(
        labels: NDArray[np.bool_], weights: NDArray[np.float64]
    ) -> tuple[WeightedClassSums, WeightedClassSums]:
        limbs, exponent = to_limbs(weights)
        nothing = np.zeros((1, len(weights)), np.int64)
        positive, negative = (
            WeightedClassSums.of_rows(limbs[:, own], nothing[:, own], exponent - UNIT_EXPONENT)
            for own in (labels, ~labels)
        )
        return positive, negative

    @property
    def class_totals(self) -> ClassTotals:
        """The weight of either class, in units."""
        return ClassTotals(self.positive.weight, self.negative.weight)

    @property
    def weight(self) -> float:
        """Sum of the weights of both classes, rounded once."""
        return scaled(self.positive.weight + self.negative.weight, UNIT_EXPONENT)

    def followed_by(self, higher: "WeightedAUCCounts") -> "WeightedAUCCounts":
        """Counts of both ranges together, all scores of the other one being above those of this one."""
        return WeightedAUCCounts(
            self.positive.plus(higher.positive.above(2 * self.negative.weight)),
            self.negative.plus(higher.negative.above(2 * self.positive.weight)),
        )

    def result(self) -> AUCResult:
        """AUC, correctly rounded, and its interval."""
        positives, negatives = self.positive.rows, self.negative.rows
        if positives == 0 or negatives == 0:
            return AUCResult(math.nan, math.nan, math.nan, math.nan, positives, negatives)
        auc = self.positive.won / (2 * self.positive.weight * self.negative.weight)
        if positives == 1 or negatives == 1:
            return AUCResult(auc, math.nan, math.nan, math.nan, positives, negatives)
        # The share of positives above a negative is one minus the share below, so the variance is the same.
        variance = self.positive.variance(self.negative.weight) + self.negative.variance(self.positive.weight)
        return with_interval(auc, variance, positives, negatives)


_NO_ROWS = WeightedClassSums(0, 0, 0, 0, 0, 0)


def _doubled_weight_below(
    keys: NDArray[np.uint64], limbs: NDArray[np.int64], values: NDArray[np.uint64]
) -> NDArray[np.int64]:
    """Twice the weight of the rows below each value [values], that of equal ones counted once; limbs below 2**16.

    Args:
        keys, limbs: [rows], [limbs, rows] of the rows; keys and values ascend.
    """
    below = np.zeros((len(limbs), len(keys) + 1), np.int64)
    np.cumsum(limbs, axis=1, out=below[:, 1:])
    left, right = (np.searchsorted(keys, values, side=side) for side in ("left", "right"))
    return carried(below[:, left] + below[:, right])


def _row_products(a: NDArray[np.int64], b: NDArray[np.int64]) -> NDArray[np.int64]:
    """The product of each row's two integers: limbs [limbs, rows] below 2**16 of both and of the result."""
    product = np.zeros((len(a) + len(b) - 1, a.shape[1]), np.int64)
    for i, limb in enumerate(a):
        product[i : i + len(b)] += limb * b
    return carried(product)


def _dot(a: NDArray[np.int64], b: NDArray[np.int64]) -> int:
    return to_ints(segment_products(a, b, np.zeros(1, np.int64)))[0]


def _total(limbs: NDArray[np.int64]) -> int:
    return to_ints(limbs.sum(axis=1, keepdims=True))[0]
