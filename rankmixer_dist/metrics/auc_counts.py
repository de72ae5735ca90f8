"""Exact counts behind AUC and its variance, which add up over ranges of scores; of rows, or of units of weight."""

import math
from dataclasses import dataclass
from typing import Self

import numpy as np
from numpy.typing import NDArray

from rankmixer_dist.metrics.auc_result import AUCResult, with_interval
from rankmixer_dist.metrics.exact_products import exact_dot, exact_moments
from rankmixer_dist.metrics.pr_auc import ClassTotals
from rankmixer_dist.metrics.weights import sorted_rows, units_before

SEARCH_VALUES = 1 << 13


@dataclass(frozen=True)
class ClassSums:
    """Whole numbers over the rows of one class, w being a row's weight and b twice the other class's weight below it,
    that of equal scores counted once.

    Attributes:
        rows: how many.
        weight: sum w; of rows without weights, how many.
        won: sum w b.
        squares, won_squares, squared_wins: sums of w^2, w^2 b, w^2 b^2.
    """

    rows: int = 0
    weight: int = 0
    won: int = 0
    squares: int = 0
    won_squares: int = 0
    squared_wins: int = 0

    @classmethod
    def of_rows(cls, below: NDArray[np.int64], units: NDArray[np.int64] | None) -> Self:
        """Sums of rows: b [rows], and w [rows] if that is not 1."""
        rows = len(below)
        if units is None:
            won = int(below.sum())
            return cls(rows, rows, won, rows, won, exact_dot(below, below))
        won, squares, won_squares, squared_wins = exact_moments(units, below)
        return cls(rows, int(units.sum()), won, squares, won_squares, squared_wins)

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
class AUCCounts:
    """All that AUC and its variance need of the rows of a range of scores.

    Workers that hold a range of scores each need to send no more than this.
    """

    positive: ClassSums = ClassSums()
    negative: ClassSums = ClassSums()

    @classmethod
    def of_rows(cls, keys: NDArray, labels: NDArray[np.bool_], units: NDArray[np.int64] | None = None) -> Self:
        """Counts of rows: scores, or keys that are ordered as they are, labels and weights [rows]."""
        positive, negative = (
            sorted_rows(keys[own], None if units is None else units[own]) for own in (labels, ~labels)
        )
        # One class after the other: their arrays need not be held together.
        return cls(
            *(
                ClassSums.of_rows(doubled_below(*other, own[0]), own[1])
                for own, other in ((positive, negative), (negative, positive))
            )
        )

    @classmethod
    def of_one_score(cls, labels: NDArray[np.bool_], units: NDArray[np.int64] | None = None) -> Self:
        """Counts of rows [rows] that have one score, before they are set against each other (`tied`)."""
        nothing = np.zeros(len(labels), np.int64)
        return cls(
            *(ClassSums.of_rows(nothing[own], None if units is None else units[own]) for own in (labels, ~labels))
        )

    def tied(self) -> Self:
        """Counts of rows that have one score, from those of `of_one_score`: a tie is half a win."""
        return type(self)(self.positive.above(self.negative.weight), self.negative.above(self.positive.weight))

    def plus(self, other: Self) -> Self:
        """Sums over both, neither set against the other."""
        return type(self)(self.positive.plus(other.positive), self.negative.plus(other.negative))

    @property
    def class_totals(self) -> ClassTotals:
        """The rows of either class, or their weight."""
        return ClassTotals(self.positive.weight, self.negative.weight)

    def followed_by(self, higher: Self) -> Self:
        """Counts of both ranges together, all scores of the other one being above those of this one."""
        return type(self)(
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


def doubled_below(rows: NDArray, units: NDArray[np.int64] | None, values: NDArray) -> NDArray[np.int64]:
    """Twice the number of rows [rows], or their weight, below each value [values], equal ones counted once; both
    ascend."""
    doubled = np.empty(len(values), np.int64)
    before = None if units is None else units_before(units, len(rows))
    # Some values at a time, among the rows near them: the searches stay in the cache.
    for start in range(0, len(values), SEARCH_VALUES):
        some = values[start : start + SEARCH_VALUES]
        first, last = np.searchsorted(rows, some[0], side="left"), np.searchsorted(rows, some[-1], side="right")
        near = rows[first:last]
        left = np.searchsorted(near, some, side="left")
        right = np.searchsorted(near, some, side="right")
        out = doubled[start : start + SEARCH_VALUES]
        if before is None:
            left += right
            np.add(left, 2 * first, out=out)
        else:
            np.add(before[left + first], before[right + first], out=out)
    return doubled


def variance_of_mean(total: int, squares: int, count: int, scale: int) -> float:
    """Estimated variance of the mean of `count` numbers x / scale, from whole sum x and sum x^2; rounded once."""
    return (count * squares - total**2) / (count**2 * (count - 1) * scale**2)
