"""AUC of weighted rows, without rounding before the last division."""

import numpy as np
from numpy.typing import NDArray

from rankmixer_dist.metrics.auc_result import AUCResult
from rankmixer_dist.metrics.keys import score_keys
from rankmixer_dist.metrics.weighted_counts import WeightedAUCCounts


def weighted_auc(scores: NDArray[np.floating], labels: NDArray[np.bool_], weights: NDArray[np.float64]) -> AUCResult:
    """AUC of checked columns [rows] with weights above 0, O(n log n) time.

    AUC = sum_ij w_i w_j (1[x_i > y_j] + 1[x_i = y_j] / 2) / (sum_i w_i sum_j w_j) over positives i and negatives j,
    counted in integers (floats are whole multiples of a power of two) and divided once: the correctly rounded value
    for any float64 weights, and for whole weights that of the rows repeated.

    Variance: that of DeLong with row i's share s_i = w_i / sum w in place of 1 / P, which is the linearisation of a
    ratio of weighted sums: P / (P - 1) sum_i s_i^2 (V10_i - AUC)^2, and the same over the negatives, each counted in
    integers and divided once. Equal weights give DeLong's.
    """
    return WeightedAUCCounts.of_rows(score_keys(scores).astype(np.uint64), labels, weights).result()
