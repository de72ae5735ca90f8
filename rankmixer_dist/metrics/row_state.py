"""Metric states that keep their rows: a checked buffer, and all that does not depend on the figure."""

from collections.abc import Callable, Mapping
from typing import ClassVar, Self

import numpy as np
from numpy.typing import ArrayLike, NDArray

from rankmixer_dist.metrics.rows import check_same_length, check_weights

Checks = Mapping[str, Callable[[ArrayLike], NDArray]]

WEIGHTS = "weights"
# Scores have the type that they came with; float32 gives way to float64 when columns are joined.
EMPTY_TYPES = {"labels": np.bool_, "user_ids": np.int64, WEIGHTS: np.float64}


class RowBuffer:
    """Columns of equal length, appended chunk by chunk and joined when first read.

    A buffer that is given weights has that column from then on, with weight 1 for the rows before; rows of weight 0
    count as absent and are not kept. Without weights there is no such column and no memory for one.
    """

    def __init__(self, checks: Checks) -> None:
        self._checks = checks
        self._chunks: dict[str, list[NDArray]] = {name: [_empty(name)] for name in checks}
        self.rows = 0

    def append(self, columns: Mapping[str, ArrayLike], weights: ArrayLike | None) -> None:
        """Append one chunk, checked and copied: callers reuse their batch buffers.

        Raises:
            ValueError: a column that its check refuses, lengths that differ.
        """
        checked = {name: check(columns[name]) for name, check in self._checks.items()}
        if weights is not None:
            checked[WEIGHTS] = check_weights(weights)
        check_same_length(**checked)
        if weights is not None:
            kept = checked[WEIGHTS] > 0
            checked = {name: column[kept] for name, column in checked.items()}
            self._have_weights()
        elif WEIGHTS in self._chunks:
            checked[WEIGHTS] = np.ones(len(next(iter(checked.values()))))
        for name, column in checked.items():
            self._chunks[name].append(column.copy())
            rows = len(column)
        self.rows += rows

    def merge(self, other: Self) -> None:
        """Append the rows of another buffer with the same columns, weights aside."""
        assert other._checks.keys() == self._checks.keys()
        if WEIGHTS in other._chunks:
            self._have_weights()
        for name, chunks in self._chunks.items():
            # A copy of the list: a buffer may be merged with itself.
            chunks.extend(list(other._chunks.get(name, [np.ones(other.rows)])))
        self.rows += other.rows

    def arrays(self) -> dict[str, NDArray]:
        """Every column [rows] by name, `weights` last and only if there are any; not to be written to."""
        for chunks in self._chunks.values():
            filled = [chunk for chunk in chunks if len(chunk)] or chunks[:1]
            chunks[:] = filled if len(filled) == 1 else [np.concatenate(filled)]
        return {name: chunks[0] for name, chunks in self._chunks.items()}

    def clear(self) -> None:
        """Forget all rows."""
        self._chunks = {name: [_empty(name)] for name in self._chunks}
        self.rows = 0

    def _have_weights(self) -> None:
        self._chunks.setdefault(WEIGHTS, [np.ones(self.rows)])


class RowState:
    """A metric over rows that are kept; a subclass says which columns, takes them in `update` and computes."""

    checks: ClassVar[Checks]
    """Column -> what checks it and gives it its type; `weights` may stand beside them."""

    def __init__(self) -> None:
        self._rows = RowBuffer(self.checks)

    @property
    def rows(self) -> int:
        """Rows that are kept."""
        return self._rows.rows

    def merge(self, other: Self) -> None:
        """Add the rows of another state to this one."""
        self._rows.merge(other._rows)


def _empty(name: str) -> NDArray:
    return np.empty(0, EMPTY_TYPES.get(name, np.float32))
