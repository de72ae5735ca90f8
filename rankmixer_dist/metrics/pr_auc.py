"""Area under the precision-recall curve, as average precision."""

import math
from dataclasses import dataclass
from typing import Self

import numpy as np
from numpy.typing import ArrayLike, NDArray

from rankmixer_dist.metrics.exact_products import (
    LIMB_BITS,
    UNIT_EXPONENT,
    carried,
    from_int,
    plus_int,
    shares,
    to_ints,
    to_limbs,
)
from rankmixer_dist.metrics.keys import key_order, run_starts, score_keys
from rankmixer_dist.metrics.row_state import RowState
from rankmixer_dist.metrics.rows import check_labels, check_scores

_SMALLEST_SHARE = 2.0**-960
"""Far enough above the smallest normal number, 2**-1022, that bits which a share's lowest limbs lose do not show."""


@dataclass(frozen=True)
class ClassTotals:
    """Rows of either class, or the sums of their weights in units of 2**-1088: whole numbers."""

    positive: int
    negative: int

    def plus(self, other: Self) -> Self:
        """Of both."""
        return type(self)(self.positive + other.positive, self.negative + other.negative)


NOBODY = ClassTotals(0, 0)


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
    if weights is None:
        return math.fsum(precision_terms(scores, labels, NOBODY)) / int(np.count_nonzero(labels))
    whole = _weight_totals(labels, weights)
    return math.fsum(weighted_precision_terms(score_keys(scores), labels, weights, NOBODY, whole))


def precision_terms(scores: NDArray, labels: NDArray[np.bool_], above: ClassTotals) -> NDArray[np.float64]:
    """The terms [distinct scores of positives] of average precision, times the positives of all, of a range of scores.

    Args:
        scores: [rows], or keys that are ordered as they are.
        above: rows of either class with higher scores.
    """
    negative_scores, positive_scores = np.sort(scores[~labels]), np.sort(scores[labels])
    if len(positive_scores) == 0:
        return np.empty(0)
    starts = run_starts(positive_scores)
    positives = len(positive_scores)
    positives_above = above.positive + positives - starts
    below = np.searchsorted(negative_scores, positive_scores[starts], side="left")
    negatives_above = above.negative + len(negative_scores) - below
    positives_here = np.diff(starts, append=positives)
    return positives_here * (positives_above / (positives_above + negatives_above))


def weighted_precision_terms(
    keys: NDArray[np.unsignedinteger],
    labels: NDArray[np.bool_],
    weights: NDArray[np.float64],
    above: ClassTotals,
    whole: ClassTotals,
) -> NDArray[np.float64]:
    """The terms [distinct scores] of average precision, of a range of scores, in units of weight.

    Args:
        keys: [rows], ordered as the scores.
        above, whole: of the rows with higher scores, and of all.
    """
    order = key_order(keys.astype(np.uint64))[::-1]
    keys, labels = keys[order], labels[order]
    limbs, exponent = to_limbs(weights[order])
    starts = run_starts(keys)
    of_rows = np.add.reduceat(limbs, starts, axis=1)
    of_positives = np.add.reduceat(np.where(labels, limbs, 0), starts, axis=1)
    return _weighted_terms(of_rows, of_positives, exponent - UNIT_EXPONENT, above, whole)


def precision_terms_of_ties(
    here: ClassTotals, above: ClassTotals, whole: ClassTotals, *, weighted: bool
) -> NDArray[np.float64]:
    """As the functions above, of rows that have one score."""
    if weighted:
        both = here.positive + here.negative
        (of_rows, shift), (of_positives, positive_shift) = from_int(both), from_int(here.positive)
        # Both on the limbs of the lower one.
        low = min(shift, positive_shift)
        of_rows, of_positives = (
            np.pad(part, (((own - low) // LIMB_BITS, 0), (0, 0)))
            for part, own in ((of_rows, shift), (of_positives, positive_shift))
        )
        return _weighted_terms(of_rows, of_positives, low, above, whole)
    taken = above.plus(here)
    return np.array([here.positive * (taken.positive / (taken.positive + taken.negative))])


def _weighted_terms(
    of_rows: NDArray[np.int64], of_positives: NDArray[np.int64], shift: int, above: ClassTotals, whole: ClassTotals
) -> NDArray[np.float64]:
    """From the weights of each distinct score, the highest first: limbs [limbs, distinct scores] of 2**shift units."""
    if whole.positive == 0:
        return np.empty(0)
    everything = whole.positive + whole.negative
    taken, taken_shift = plus_int(np.cumsum(of_rows, axis=1), shift, above.positive + above.negative)
    positive, positive_shift = plus_int(np.cumsum(of_positives, axis=1), shift, above.positive)
    share = shares(taken, everything, taken_shift)
    tiny = share < _SMALLEST_SHARE
    precision = shares(positive, everything, positive_shift) / np.where(tiny, 1, share)
    # Such shares have lost bits, or are 0 beside a weight that is 2**1075 times as large.
    pairs = zip(to_ints(positive[:, tiny]), to_ints(taken[:, tiny]), strict=True)
    precision[tiny] = [(own << positive_shift) / (both << taken_shift) for own, both in pairs]
    return shares(carried(of_positives), whole.positive, shift) * precision


def _weight_totals(labels: NDArray[np.bool_], weights: NDArray[np.float64]) -> ClassTotals:
    limbs, exponent = to_limbs(weights)
    positive, both = (
        to_ints(part.sum(axis=1, keepdims=True))[0] << exponent - UNIT_EXPONENT for part in (limbs[:, labels], limbs)
    )
    return ClassTotals(positive, both - positive)


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
