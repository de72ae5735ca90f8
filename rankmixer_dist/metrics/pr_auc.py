"""Area under the precision-recall curve, as average precision."""

import math
from dataclasses import dataclass
from typing import Self

import numpy as np
from numpy.typing import ArrayLike, NDArray

from rankmixer_dist.metrics.keys import run_starts
from rankmixer_dist.metrics.row_state import RowState
from rankmixer_dist.metrics.rows import check_labels, check_scores
from rankmixer_dist.metrics.weights import sorted_rows, units_before, weight_units


@dataclass(frozen=True)
class ClassTotals:
    """Rows of either class, or the sums of their weights in units: whole numbers."""

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
    rows count their units.
    """
    if not labels.any():
        return math.nan
    units = weight_units(weights)
    positives = int(np.count_nonzero(labels)) if units is None else int(units[labels].sum())
    return math.fsum(precision_terms(scores, labels, NOBODY, units)) / positives


def precision_terms(
    keys: NDArray, labels: NDArray[np.bool_], above: ClassTotals, units: NDArray[np.int64] | None = None
) -> NDArray[np.float64]:
    """The terms [distinct scores of positives] of average precision, times the positives of all, of a range of scores.

    Args:
        keys: scores [rows], or keys that are ordered as they are.
        above: rows, or units, of either class with higher scores.
        units: weights [rows].
    """
    (negative_keys, negative_units), (positive_keys, positive_units) = (
        sorted_rows(keys[own], None if units is None else units[own]) for own in (~labels, labels)
    )
    if len(positive_keys) == 0:
        return np.empty(0)
    starts = run_starts(positive_keys)
    positives_below = units_before(positive_units, len(positive_keys))[np.append(starts, len(positive_keys))]
    below = np.searchsorted(negative_keys, positive_keys[starts], side="left")
    negatives_below = units_before(negative_units, len(negative_keys))
    return _terms(
        np.diff(positives_below),
        above.positive + positives_below[-1] - positives_below[:-1],
        above.negative + negatives_below[-1] - negatives_below[below],
    )


def precision_term_of_tie(here: ClassTotals, above: ClassTotals) -> NDArray[np.float64]:
    """As `precision_terms`, of rows that have one score."""
    taken = above.plus(here)
    return _terms(*(np.array([number]) for number in (here.positive, taken.positive, taken.negative)))


def _terms(positives: NDArray, positives_taken: NDArray, negatives_taken: NDArray) -> NDArray[np.float64]:
    return positives * (positives_taken / (positives_taken + negatives_taken))


class PRAUC(RowState):
    """Mergeable average precision; bit-identical for every split of the rows.

    Keeps the rows: 5 bytes a row with float32 scores, 8 more with weights.
    """

    checks = {"scores": check_scores, "labels": check_labels}

    def update(self, scores: ArrayLike, labels: ArrayLike, weights: ArrayLike | None = None) -> None:
        """Add rows: scores [rows] float32 or float64, labels [rows] of 0 and 1, weights [rows], 1 each if left out.

        Raises:
            ValueError: scores that are NaN or infinite, labels other than 0 and 1, weights that
                `check_weights` refuses, lengths that differ.
        """
        self._rows.append({"scores": scores, "labels": labels}, weights)

    def compute(self) -> float:
        """Average precision over all rows so far, NaN without positives."""
        return average_precision(**self._rows.arrays())
