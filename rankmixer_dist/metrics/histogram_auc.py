"""AUC in memory that does not grow with the rows: an interval that surely holds the exact value."""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Self

import numpy as np
from numpy.typing import ArrayLike, NDArray

from rankmixer_dist.metrics.exact_products import exact_dot
from rankmixer_dist.metrics.keys import score_keys
from rankmixer_dist.metrics.rows import check_array_names, check_labels, check_same_length, check_scores
from rankmixer_dist.metrics.state import ArrayState

MIN_BITS, MAX_BITS = 4, 28


@dataclass(frozen=True)
class HistogramAUCResult:
    """An interval that holds the exact AUC, not a confidence interval; NaN with a single class.

    Attributes:
        low, high: low <= AUC <= high, also after the rounding of all three.
        positives, negatives: rows of each class.
    """

    low: float
    high: float
    positives: int
    negatives: int

    @property
    def auc(self) -> float:
        """The middle, at most (high - low) / 2 away from the exact AUC."""
        return (self.low + self.high) / 2


class HistogramAUC(ArrayState):
    """Mergeable bounds of the AUC from counts in bins; bit-identical for every split of the rows.

    A bin is the top bits of a float32 score, as ordered integers (`score_keys`): its sign, its power of two and, with
    the 20 bits of the default, 2,048 bins from each power of two to the next. No range has to be known, and logits do
    as well as probabilities. float64 scores are rounded to float32 to find their bin, which keeps their order.

    Pairs in different bins are counted exactly. A pair within a bin is unknown, won at most and lost at least, unless
    the bin holds a single score (its lowest and highest are kept): then it is a tie. Memory: 32 bytes a bin, 32 MB by
    default; saved are only bins that are not empty.

    Args:
        bits: of the score that make a bin, from 4 to 28.

    Raises:
        ValueError: bits out of range.
    """

    def __init__(self, bits: int = 20) -> None:
        if not MIN_BITS <= bits <= MAX_BITS:
            raise ValueError(f"bits: expected {MIN_BITS} to {MAX_BITS}, got {bits}")
        self.bits = bits
        self._positives = np.zeros(1 << bits, np.int64)
        self._negatives = np.zeros(1 << bits, np.int64)
        self._lowest = np.full(1 << bits, math.inf)
        self._highest = np.full(1 << bits, -math.inf)

    def update(self, scores: ArrayLike, labels: ArrayLike) -> None:
        """Add rows: scores [rows] float32 or float64, labels [rows] of 0 and 1.

        Raises:
            ValueError: scores that are NaN or infinite, labels other than 0 and 1, lengths that differ.
        """
        scores, labels = check_scores(scores), check_labels(labels)
        check_same_length(scores=scores, labels=labels)
        # What overflows to infinity still lies above all that does not.
        with np.errstate(over="ignore"):
            keys = score_keys(scores.astype(np.float32))
        bins = (keys >> np.uint32(32 - self.bits)).astype(np.int64)
        self._positives += np.bincount(bins[labels], minlength=len(self._positives))
        self._negatives += np.bincount(bins[~labels], minlength=len(self._negatives))
        # Plus zero, because minus zero would show in the saved bits.
        exact = scores.astype(np.float64) + 0.0
        np.minimum.at(self._lowest, bins, exact)
        np.maximum.at(self._highest, bins, exact)

    def merge(self, other: Self) -> None:
        """Add the rows of another state to this one.

        Raises:
            ValueError: a state with another number of bits.
        """
        if other.bits != self.bits:
            raise ValueError(f"bits: a state of {other.bits} cannot be merged into one of {self.bits}")
        self._positives += other._positives
        self._negatives += other._negatives
        np.minimum(self._lowest, other._lowest, out=self._lowest)
        np.maximum(self._highest, other._highest, out=self._highest)

    def compute(self) -> HistogramAUCResult:
        """Bounds of the AUC over all rows so far, O(bins)."""
        positives, negatives = int(self._positives.sum()), int(self._negatives.sum())
        if positives == 0 or negatives == 0:
            return HistogramAUCResult(math.nan, math.nan, positives, negatives)
        negatives_below = np.cumsum(self._negatives) - self._negatives
        doubled_wins = 2 * exact_dot(self._positives, negatives_below)
        single = self._lowest == self._highest
        ties = exact_dot(self._positives[single], self._negatives[single])
        unknown = exact_dot(self._positives[~single], self._negatives[~single])
        doubled_pairs = 2 * positives * negatives
        return HistogramAUCResult(
            low=(doubled_wins + ties) / doubled_pairs,
            high=(doubled_wins + ties + 2 * unknown) / doubled_pairs,
            positives=positives,
            negatives=negatives,
        )

    def to_arrays(self) -> dict[str, NDArray]:
        """The state as `bits` and, of each bin that is not empty, its number `bins`, `positives`, `negatives` int64,
        `lowest`, `highest` float64."""
        bins = np.flatnonzero(self._positives + self._negatives)
        return {
            "bits": np.array(self.bits),
            "bins": bins,
            "positives": self._positives[bins],
            "negatives": self._negatives[bins],
            "lowest": self._lowest[bins],
            "highest": self._highest[bins],
        }

    @classmethod
    def from_arrays(cls, arrays: Mapping[str, NDArray]) -> Self:
        """The state that `to_arrays` was called on.

        Raises:
            ValueError: other array names, bits out of range.
        """
        check_array_names(arrays, {"bits", "bins", "positives", "negatives", "lowest", "highest"})
        state = cls(int(arrays["bits"]))
        bins = arrays["bins"]
        state._positives[bins], state._negatives[bins] = arrays["positives"], arrays["negatives"]
        state._lowest[bins], state._highest[bins] = arrays["lowest"], arrays["highest"]
        return state
