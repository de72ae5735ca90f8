"""Sums of floats without rounding, so that they do not depend on how the rows were split."""

import math
from typing import Self

import numpy as np
from numpy.typing import NDArray

# A float64 is an integer below 2**53 times 2**(max(e, 1) - 1075) with biased exponent e: a whole number of these.
UNITS_PER_ONE = 1 << 1074
MANTISSA_BITS = 52
LOW_BITS = 26
EXPONENTS = 2048
# Half mantissas are below 2**27; float64 counts them exactly while a chunk has at most 2**26 rows. Smaller is faster.
CHUNK_ROWS = 1 << 18


class ExactSums:
    """Sums of non-negative float64 values in `num_groups` groups, each held as one Python integer.

    A long accumulator (Kulisch): integers add without rounding, so every split of the values and every order of
    `add` and `merge` leaves the same state. At most 144 bytes a group.
    """

    def __init__(self, num_groups: int) -> None:
        self.totals = [0] * num_groups

    @classmethod
    def of_counts(cls, counts: NDArray[np.integer]) -> Self:
        """Sums [groups] that are whole numbers."""
        sums = cls(len(counts))
        sums.totals = [int(count) * UNITS_PER_ONE for count in counts]
        return sums

    def add(self, values: NDArray[np.float64], groups: NDArray[np.integer]) -> None:
        """Add values [rows], finite and not negative, each to the sum of its group [rows]."""
        for start in range(0, len(values), CHUNK_ROWS):
            self._add_chunk(values[start : start + CHUNK_ROWS], groups[start : start + CHUNK_ROWS])

    def _add_chunk(self, values: NDArray[np.float64], groups: NDArray[np.integer]) -> None:
        bits = values.view(np.int64)
        exponents = bits >> MANTISSA_BITS
        # A set sign bit makes the exponent negative; infinity and NaN have the largest one.
        assert exponents.min() >= 0 and exponents.max() < EXPONENTS - 1
        mantissas = bits & ((1 << MANTISSA_BITS) - 1)
        mantissas += (exponents > 0).astype(np.int64) << MANTISSA_BITS
        cells = groups * EXPONENTS + exponents
        num_cells = len(self.totals) * EXPONENTS
        high = np.bincount(cells, weights=mantissas >> LOW_BITS, minlength=num_cells)
        low = np.bincount(cells, weights=mantissas & ((1 << LOW_BITS) - 1), minlength=num_cells)
        for cell in np.flatnonzero((high > 0) | (low > 0)).tolist():
            group, exponent = divmod(cell, EXPONENTS)
            self.totals[group] += ((int(high[cell]) << LOW_BITS) + int(low[cell])) << (max(exponent, 1) - 1)

    def merge(self, other: Self) -> None:
        """Add the sums of another accumulator, group by group."""
        assert len(self.totals) == len(other.totals)
        self.totals = [mine + theirs for mine, theirs in zip(self.totals, other.totals, strict=True)]

    def rounded_sums(self) -> NDArray[np.float64]:
        """The sums [num_groups], each rounded once."""
        return np.array([total / UNITS_PER_ONE for total in self.totals])

    def ratio(self, other: Self) -> float:
        """The sum over all groups divided by that of another accumulator, rounded once; NaN for a divisor of 0."""
        return _ratio(sum(self.totals), sum(other.totals))

    def ratios(self, other: Self) -> NDArray[np.float64]:
        """The sums [num_groups] divided by those of another accumulator, as `ratio`."""
        return np.array([_ratio(mine, theirs) for mine, theirs in zip(self.totals, other.totals, strict=True)])


def _ratio(numerator: int, denominator: int) -> float:
    return numerator / denominator if denominator else math.nan
