"""How often each value of a column occurs, such as the rows of each user."""

from typing import Self

import numpy as np
from numpy.typing import NDArray

from rankmixer_dist.metrics.keys import run_starts

_WAITING = 1_000_000
"""Values that may wait to be merged, if there are not more merged ones."""


class ValueCounts:
    """Mergeable counts of the distinct values of an int64 column: 16 bytes a distinct value, up to three times that
    while rows come in."""

    def __init__(self) -> None:
        self._merged = np.empty(0, np.int64), np.empty(0, np.int64)
        self._waiting: list[tuple[NDArray[np.int64], NDArray[np.int64]]] = []

    def update(self, values: NDArray[np.int64]) -> None:
        """Add rows: values [rows]."""
        self._add(*np.unique(values, return_counts=True))

    def merge(self, other: Self) -> None:
        """Add the rows of another state to this one."""
        self._add(other.values, other.counts)

    @property
    def values(self) -> NDArray[np.int64]:
        """The distinct values [V], ascending."""
        return self._all()[0]

    @property
    def counts(self) -> NDArray[np.int64]:
        """The rows of each of them [V]."""
        return self._all()[1]

    def of(self, values: NDArray[np.int64]) -> NDArray[np.int64]:
        """How often each of `values` [rows] occurs, 0 where it does not."""
        known, counts = self._all()
        if not len(known):
            return np.zeros(len(values), np.int64)
        places = np.searchsorted(known, values).clip(max=len(known) - 1)
        return np.where(known[places] == values, counts[places], 0)

    def _add(self, values: NDArray[np.int64], counts: NDArray[np.int64]) -> None:
        self._waiting.append((values, counts))
        # Merged seldom enough that many parts take no more than a few passes over what is known already.
        if sum(len(waiting) for waiting, _ in self._waiting) > max(_WAITING, len(self._merged[0])):
            self._all()

    def _all(self) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        if self._waiting:
            values, counts = (np.concatenate(parts) for parts in zip(self._merged, *self._waiting, strict=True))
            self._waiting = []
            if len(values):
                order = np.argsort(values, kind="stable")
                values, counts = values[order], counts[order]
                starts = run_starts(values)
                self._merged = values[starts], np.add.reduceat(counts, starts)
        return self._merged
