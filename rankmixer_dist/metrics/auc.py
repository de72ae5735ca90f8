"""Exact, tie-aware AUC with its DeLong confidence interval."""

import math

import numpy as np
from numpy.typing import ArrayLike, NDArray

from rankmixer_dist.metrics.auc_counts import doubled_rows_below
from rankmixer_dist.metrics.auc_result import AUCResult, with_interval
from rankmixer_dist.metrics.row_state import RowState
from rankmixer_dist.metrics.rows import check_labels, check_scores
from rankmixer_dist.metrics.weighted_auc import weighted_auc


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

    doubled_wins = doubled_rows_below(negative_scores, positive_scores)
    auc = int(doubled_wins.sum()) / (2 * positives * negatives)
    if positives == 1 or negatives == 1:
        return AUCResult(auc, math.nan, math.nan, math.nan, positives, negatives)

    doubled_losses = doubled_rows_below(positive_scores, negative_scores)
    # The share of positives above is one minus the share below, so the variance is the same.
    variance = float(
        np.var(doubled_wins / (2 * negatives), ddof=1) / positives
        + np.var(doubled_losses / (2 * positives), ddof=1) / negatives
    )
    return with_interval(auc, variance, positives, negatives)


class AUC(RowState):
    """Mergeable exact AUC; bit-identical for every split of the rows and every order of updates and merges.

    Keeps the rows: 5 bytes a row with float32 scores, 8 more with weights; `SpilledAUC` keeps them on disk and
    `HistogramAUC` does without. Scores may be probabilities or logits.
    """

    checks = {"scores": check_scores, "labels": check_labels}

    def update(self, scores: ArrayLike, labels: ArrayLike, weights: ArrayLike | None = None) -> None:
        """Add rows: scores [rows] float32 or float64, labels [rows] of 0 and 1, weights [rows], 1 each if left out.

        Raises:
            ValueError: scores that are NaN or infinite, labels other than 0 and 1, weights that are NaN, negative or
                above 2**40, lengths that differ.
        """
        self._rows.append({"scores": scores, "labels": labels}, weights)

    def compute(self) -> AUCResult:
        """AUC, DeLong interval and class counts over all rows so far."""
        arrays = self._rows.arrays()
        return weighted_auc(**arrays) if "weights" in arrays else exact_auc(**arrays)
