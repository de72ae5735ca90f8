"""Exact, tie-aware AUC with its DeLong confidence interval."""

import numpy as np
from numpy.typing import ArrayLike, NDArray

from rankmixer_dist.metrics.auc_counts import AUCCounts
from rankmixer_dist.metrics.auc_result import AUCResult
from rankmixer_dist.metrics.row_state import RowState
from rankmixer_dist.metrics.rows import check_labels, check_scores
from rankmixer_dist.metrics.weights import weight_units


def exact_auc(
    scores: NDArray[np.floating], labels: NDArray[np.bool_], weights: NDArray[np.float64] | None = None
) -> AUCResult:
    """AUC of checked columns [rows], weights above 0, O(n log n) time.

    Mann-Whitney: with P positives x and N negatives y, AUC = sum_ij (1[x_i > y_j] + 1[x_i = y_j] / 2) / (P N).
    The sum is counted in halves, as an integer, and divided once, so neither row order nor partition shows. With
    weights a pair counts w_i w_j, and P and N are sums of weights: for whole weights that of the rows repeated.

    Variance (DeLong et al. 1988; the O(n log n) form of Sun & Xu, IEEE SPL 2014): Var(V10) / P + Var(V01) / N, where
    V10_i is the share of negatives that positive i beats and V01_j the share of positives that beat negative j. Sun
    & Xu take the shares from differences of midranks; the binary searches here give twice those differences. Their
    squares are counted as integers too. With weights row i's share s_i = w_i / sum w stands in place of 1 / P, which
    is the linearisation of a ratio of weighted sums: P / (P - 1) sum_i s_i^2 (V10_i - AUC)^2 with P rows, and the same
    over the negatives. Equal weights give DeLong's.
    """
    return AUCCounts.of_rows(scores, labels, weight_units(weights)).result()


class AUC(RowState):
    """Mergeable exact AUC; bit-identical for every split of the rows and every order of updates and merges.

    Keeps the rows: 5 bytes a row with float32 scores, 8 more with weights. Scores may be probabilities or logits.
    """

    checks = {"scores": check_scores, "labels": check_labels}

    def update(self, scores: ArrayLike, labels: ArrayLike, weights: ArrayLike | None = None) -> None:
        """Add rows: scores [rows] float32 or float64, labels [rows] of 0 and 1, weights [rows], 1 each if left out.

        Raises:
            ValueError: scores that are NaN or infinite, labels other than 0 and 1, weights that
                `check_weights` refuses, lengths that differ.
        """
        self._rows.append({"scores": scores, "labels": labels}, weights)

    def compute(self) -> AUCResult:
        """AUC, DeLong interval and class counts over all rows so far."""
        return exact_auc(**self._rows.arrays())
