"""Exact, tie-aware AUC with its DeLong confidence interval."""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Self

import numpy as np
from numpy.typing import ArrayLike, NDArray

from rankmixer_dist.metrics.rows import RowBuffer, check_array_names, check_labels, check_scores

NORMAL_QUANTILE_975 = 1.959963984540054


@dataclass(frozen=True)
class AUCResult:
    """AUC and its sampling error; what is undefined is NaN.

    Attributes:
        auc: P(score of a positive > score of a negative) + P(equal) / 2; NaN with a single class.
        variance: DeLong variance of `auc`; NaN with fewer than two rows of either class.
        ci95_low, ci95_high: auc -+ 1.96 standard errors, cut at 0 and 1.
        positives, negatives: rows of each class.
    """

    auc: float
    variance: float
    ci95_low: float
    ci95_high: float
    positives: int
    negatives: int


def exact_auc(scores: NDArray[np.floating], labels: NDArray[np.bool_]) -> AUCResult:
    """AUC of checked columns [rows], O(n log n) time.

    Mann-Whitney: with P positives x and N negatives y, AUC = sum_ij (1[x_i > y_j] + 1[x_i = y_j] / 2) / (P N).
    The sum is counted in halves, as an integer, and divided once, so neither row order nor partition shows.

    Variance (DeLong et al. 1988; the O(n log n) form of Sun & Xu, IEEE SPL 2014): Var(V10) / P + Var(V01) / N, where
    V10_i is the share of negatives that positive i beats and V01_j the share of positives that beat negative j. Sun
    & Xu take the shares from differences of midranks; the binary searches here give twice those differences.
    """
    positive_scores, negative_scores = np.sort(scores[labels]), np.sort(scores[~labels])
    positives, negatives = len(positive_scores), len(negative_scores)
    # Twice the pair count has to fit int64; that takes over four billion rows to break.
    assert positives * negatives < 2**62
    if positives == 0 or negatives == 0:
        return AUCResult(math.nan, math.nan, math.nan, math.nan, positives, negatives)

    doubled_wins = np.searchsorted(negative_scores, positive_scores, side="left")
    doubled_wins += np.searchsorted(negative_scores, positive_scores, side="right")
    auc = int(doubled_wins.sum()) / (2 * positives * negatives)
    if positives == 1 or negatives == 1:
        return AUCResult(auc, math.nan, math.nan, math.nan, positives, negatives)

    doubled_losses = np.searchsorted(positive_scores, negative_scores, side="left")
    doubled_losses += np.searchsorted(positive_scores, negative_scores, side="right")
    # The share of positives above is one minus the share below, so the variance is the same.
    variance = float(
        np.var(doubled_wins / (2 * negatives), ddof=1) / positives
        + np.var(doubled_losses / (2 * positives), ddof=1) / negatives
    )
    half_width = NORMAL_QUANTILE_975 * math.sqrt(variance)
    return AUCResult(
        auc=auc,
        variance=variance,
        ci95_low=max(0.0, auc - half_width),
        ci95_high=min(1.0, auc + half_width),
        positives=positives,
        negatives=negatives,
    )


class AUC:
    """Mergeable exact AUC; bit-identical for every split of the rows and every order of updates and merges.

    Keeps the rows: 5 bytes a row with float32 scores. Scores may be probabilities or logits.
    """

    def __init__(self) -> None:
        self._rows = RowBuffer("scores", "labels")

    def update(self, scores: ArrayLike, labels: ArrayLike) -> None:
        """Add rows: scores [rows] float32 or float64, labels [rows] of 0 and 1.

        Raises:
            ValueError: scores that are NaN or infinite, labels other than 0 and 1, lengths that differ.
        """
        self._rows.append(scores=check_scores(scores), labels=check_labels(labels))

    def merge(self, other: Self) -> None:
        """Add the rows of another state to this one."""
        self._rows.merge(other._rows)

    def compute(self) -> AUCResult:
        """AUC, DeLong interval and class counts over all rows so far."""
        return exact_auc(self._rows.column("scores"), self._rows.column("labels"))

    def to_arrays(self) -> dict[str, NDArray]:
        """The state as `scores` [rows] and `labels` [rows] bool."""
        return self._rows.to_arrays()

    @classmethod
    def from_arrays(cls, arrays: Mapping[str, NDArray]) -> Self:
        """The state that `to_arrays` was called on.

        Raises:
            ValueError: other array names, or values that `update` refuses.
        """
        check_array_names(arrays, {"scores", "labels"})
        state = cls()
        state.update(**arrays)
        return state
