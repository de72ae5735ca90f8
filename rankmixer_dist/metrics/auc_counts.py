"""Exact counts behind AUC and its variance, which add up over ranges of scores."""

import math
from dataclasses import dataclass
from typing import Self

import numpy as np
from numpy.typing import NDArray

from rankmixer_dist.metrics.auc_result import AUCResult, with_interval
from rankmixer_dist.metrics.exact_products import exact_dot
from rankmixer_dist.metrics.pr_auc import ClassTotals

SEARCH_VALUES = 1 << 13


@dataclass(frozen=True)
class AUCCounts:
    """Whole numbers that say AUC and DeLong variance of the rows of a range of scores.

    A positive's wins are twice the negatives below it, equal ones counted once; a negative's losses are twice the
    positives below it, likewise. Workers that hold a range of scores each need to send no more than this.

    Attributes:
        positives, negatives: rows.
        wins: sum of the wins over positives.
        squared_wins, squared_losses: sums of squares.
    """

    positives: int
    negatives: int
    wins: int
    squared_wins: int
    squared_losses: int

    @classmethod
    def of_rows(cls, keys: NDArray, labels: NDArray[np.bool_]) -> Self:
        """Counts of rows: scores, or keys that are ordered as they are, and labels [rows]."""
        positive, negative = np.sort(keys[labels]), np.sort(keys[~labels])
        # Twice the pair count has to fit int64; that takes over four billion rows to break.
        assert len(positive) * len(negative) < 2**62
        doubled = doubled_rows_below(negative, positive)
        wins, squared_wins = int(doubled.sum()), exact_dot(doubled, doubled)
        # One class after the other: their arrays need not be held together.
        doubled = doubled_rows_below(positive, negative)
        return cls(len(positive), len(negative), wins, squared_wins, exact_dot(doubled, doubled))

    @classmethod
    def of_ties(cls, positives: int, negatives: int) -> Self:
        """Counts of rows that have one score."""
        return cls(positives, negatives, positives * negatives, positives * negatives**2, negatives * positives**2)

    @property
    def class_totals(self) -> ClassTotals:
        """The rows of either class."""
        return ClassTotals(self.positives, self.negatives)

    def followed_by(self, higher: Self) -> Self:
        """Counts of both ranges together, all scores of the other one being above those of this one."""
        # Each positive of the other range wins that much more, each negative loses that much more.
        more_wins, more_losses = 2 * self.negatives, 2 * self.positives
        losses = 2 * higher.positives * higher.negatives - higher.wins
        return type(self)(
            positives=self.positives + higher.positives,
            negatives=self.negatives + higher.negatives,
            wins=self.wins + higher.wins + more_wins * higher.positives,
            squared_wins=self.squared_wins
            + higher.squared_wins
            + 2 * more_wins * higher.wins
            + more_wins**2 * higher.positives,
            squared_losses=self.squared_losses
            + higher.squared_losses
            + 2 * more_losses * losses
            + more_losses**2 * higher.negatives,
        )

    def result(self) -> AUCResult:
        """AUC, correctly rounded, and its interval."""
        positives, negatives = self.positives, self.negatives
        if positives == 0 or negatives == 0:
            return AUCResult(math.nan, math.nan, math.nan, math.nan, positives, negatives)
        doubled_pairs = 2 * positives * negatives
        auc = self.wins / doubled_pairs
        if positives == 1 or negatives == 1:
            return AUCResult(auc, math.nan, math.nan, math.nan, positives, negatives)
        variance = variance_of_mean(self.wins, self.squared_wins, positives, 2 * negatives)
        variance += variance_of_mean(doubled_pairs - self.wins, self.squared_losses, negatives, 2 * positives)
        return with_interval(auc, variance, positives, negatives)


def doubled_rows_below(rows: NDArray, values: NDArray) -> NDArray[np.int64]:
    """Twice the number of rows [rows] below each value [values], equal ones counted once; both ascend."""
    doubled = np.empty(len(values), np.int64)
    # Some values at a time, among the rows near them: the searches stay in the cache.
    for start in range(0, len(values), SEARCH_VALUES):
        some = values[start : start + SEARCH_VALUES]
        first, last = np.searchsorted(rows, some[0], side="left"), np.searchsorted(rows, some[-1], side="right")
        near = rows[first:last]
        found = np.searchsorted(near, some, side="left")
        found += np.searchsorted(near, some, side="right")
        np.add(found, 2 * first, out=doubled[start : start + SEARCH_VALUES])
    return doubled


def variance_of_mean(total: int, squares: int, count: int, scale: int) -> float:
    """Estimated variance of the mean of `count` numbers x / scale, from whole sum x and sum x^2; rounded once."""
    return (count * squares - total**2) / (count**2 * (count - 1) * scale**2)
