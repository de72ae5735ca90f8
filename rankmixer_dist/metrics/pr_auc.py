"""Area under the precision-recall curve, as average precision."""

import math

import numpy as np
from numpy.typing import ArrayLike, NDArray

from rankmixer_dist.metrics.exact_products import carried, shares, to_ints, to_limbs
from rankmixer_dist.metrics.keys import key_order, run_starts, score_keys
from rankmixer_dist.metrics.row_state import RowState
from rankmixer_dist.metrics.rows import check_labels, check_scores


def average_precision(
    scores: NDArray[np.floating], labels: NDArray[np.bool_], weights: NDArray[np.float64] | None = None
) -> float:
    """Average precision of checked columns [rows] in [0, 1]; NaN without positives.

    sum_s (recall(s) - recall(s+)) precision(s) over the distinct scores s, rows with score s or above being taken:
    the area under the steps, without interpolation, as scikit-learn has it; rows of equal scores come in together.
    Counts are exact, each term is rounded twice and their sum once, so that no row order shows. With weights (above 0)
    the sums of weights are exact and a term is rounded a few times.
    """
    if not labels.any():
        return math.nan
    if weights is not None:
        return _weighted(scores, labels, weights)
    negative_scores, positive_scores = np.sort(scores[~labels]), np.sort(scores[labels])
    starts = run_starts(positive_scores)
    positives = len(positive_scores)
    positives_above = positives - starts
    negatives_above = len(negative_scores) - np.searchsorted(negative_scores, positive_scores[starts], side="left")
    positives_here = np.diff(starts, append=positives)
    return math.fsum(positives_here * (positives_above / (positives_above + negatives_above))) / positives


def _weighted(scores: NDArray[np.floating], labels: NDArray[np.bool_], weights: NDArray[np.float64]) -> float:
    order = key_order(score_keys(scores).astype(np.uint64))[::-1]
    scores, labels = scores[order], labels[order]
    limbs, _ = to_limbs(weights[order])
    starts = run_starts(scores)
    of_rows = np.add.reduceat(limbs, starts, axis=1)
    of_positives = np.add.reduceat(np.where(labels, limbs, 0), starts, axis=1)
    total, total_positive = (to_ints(part.sum(axis=1, keepdims=True))[0] for part in (of_rows, of_positives))
    share_above = shares(carried(np.cumsum(of_rows, axis=1)), total)
    positive_share_above = shares(carried(np.cumsum(of_positives, axis=1)), total)
    recall_gained = shares(carried(of_positives), total_positive)
    return math.fsum(recall_gained * (positive_share_above / share_above))


class PRAUC(RowState):
    """Mergeable average precision; bit-identical for every split of the rows.

    Keeps the rows: 5 bytes a row with float32 scores, 8 more with weights.
    """

    checks = {"scores": check_scores, "labels": check_labels}

    def update(self, scores: ArrayLike, labels: ArrayLike, weights: ArrayLike | None = None) -> None:
        """Add rows: scores [rows] float32 or float64, labels [rows] of 0 and 1, weights [rows], 1 each if left out.

        Raises:
            ValueError: scores that are NaN or infinite, labels other than 0 and 1, weights that are NaN, negative or
                above 2**40, lengths that differ.
        """
        self._rows.append({"scores": scores, "labels": labels}, weights)

    def compute(self) -> float:
        """Average precision over all rows so far, NaN without positives."""
        return average_precision(**self._rows.arrays())
