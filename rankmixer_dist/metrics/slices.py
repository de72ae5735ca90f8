"""All figures of one task for each value of a column: a tab, an activity level, new and known users."""

from collections.abc import Mapping
from typing import Self

import numpy as np
from numpy.typing import ArrayLike, NDArray

from rankmixer_dist.errors import UserError
from rankmixer_dist.metrics.row_state import WEIGHTS
from rankmixer_dist.metrics.rows import check_array_names, check_same_length, check_weights
from rankmixer_dist.metrics.state import ArrayState
from rankmixer_dist.metrics.tasks import TaskFigures, TaskMetrics

MAX_SLICES = 1000
"""A column with more values is a mistake: each slice is a row of a report."""

KINDS = {"b": "booleans", "i": "integers", "u": "integers", "U": "strings"}


class SliceFigures(TaskFigures):
    """A task's figures over the rows of one slice, and how many there are."""

    rows: int


class SlicedMetrics(ArrayState):
    """Mergeable `TaskMetrics` for each value of a column; bit-identical for every split of the rows.

    Keeps the rows once, as `TaskMetrics` does; the column itself is not kept.
    """

    def __init__(self) -> None:
        self._states: dict[bool | int | str, TaskMetrics] = {}
        self._kind: str | None = None

    def update(
        self,
        slices: ArrayLike,
        scores: ArrayLike,
        labels: ArrayLike,
        user_ids: ArrayLike,
        weights: ArrayLike | None = None,
    ) -> None:
        """Add rows: slices [rows] integers, booleans or strings, the others as `TaskMetrics.update` takes them.

        Raises:
            UserError: slices of another type, of two types, or with more than 1,000 values.
            ValueError: what `TaskMetrics.update` refuses, lengths that differ.
        """
        # All is checked before the first slice is changed.
        given = {"scores": scores, "labels": labels, "user_ids": user_ids}
        columns = {name: check(given[name]) for name, check in TaskMetrics.checks.items()}
        if weights is not None:
            columns[WEIGHTS] = check_weights(weights)
        slices = np.asarray(slices)
        kind = _kind(slices)
        check_same_length(slices=slices, **columns)
        values, slice_of_row = np.unique(slices, return_inverse=True)
        self._admit(kind, values.tolist())
        rows = np.argsort(slice_of_row, kind="stable")
        starts = np.searchsorted(slice_of_row[rows], np.arange(len(values)))
        for value, own in zip(values.tolist(), np.split(rows, starts[1:]), strict=False):
            self._states[value].update(**{name: column[own] for name, column in columns.items()})

    def merge(self, other: Self) -> None:
        """Add the rows of another state to this one.

        Raises:
            UserError: slices of another type, or more than 1,000 together.
        """
        self._admit(other._kind, list(other._states))
        for value, state in other._states.items():
            self._states[value].merge(state)

    def compute(self) -> dict[bool | int | str, SliceFigures]:
        """The figures of each slice, by value, in ascending order."""
        return {
            value: {**self._states[value].compute(), "rows": self._states[value].rows} for value in sorted(self._states)
        }

    def to_arrays(self) -> dict[str, NDArray]:
        """The state as `values`, `rows` int64 and `weighted` bool [slices], and the columns of `TaskMetrics`, slice
        after slice; `weights` of the weighted slices only."""
        values = sorted(self._states)
        parts = [self._states[value].to_arrays() for value in values]
        names = [*TaskMetrics.checks, WEIGHTS]
        empty = TaskMetrics().to_arrays() | {WEIGHTS: np.empty(0)}
        columns = {
            name: np.concatenate([empty[name], *(part[name] for part in parts if name in part)]) for name in names
        }
        return {
            "values": np.array(values),
            "rows": np.array([len(part["labels"]) for part in parts], np.int64),
            "weighted": np.array([WEIGHTS in part for part in parts], np.bool_),
            **columns,
        }

    @classmethod
    def from_arrays(cls, arrays: Mapping[str, NDArray]) -> Self:
        """The state that `to_arrays` was called on.

        Raises:
            ValueError: other array names, or values that `update` refuses.
        """
        check_array_names(arrays, {"values", "rows", "weighted", WEIGHTS, *TaskMetrics.checks})
        state = cls()
        weights_used = start = 0
        for value, rows, weighted in zip(
            *(arrays[name].tolist() for name in ("values", "rows", "weighted")), strict=True
        ):
            part = {name: arrays[name][start : start + rows] for name in TaskMetrics.checks}
            start += rows
            if weighted:
                part[WEIGHTS] = arrays[WEIGHTS][weights_used : weights_used + rows]
                weights_used += rows
            state._states[value] = TaskMetrics.from_arrays(part)
        if state._states:
            state._kind = _kind(arrays["values"])
        return state

    def _admit(self, kind: str | None, values: list[bool | int | str]) -> None:
        """Make room for slices."""
        if kind is None:
            return
        if self._kind not in (None, kind):
            raise UserError(f"slices: {kind} after {self._kind}; give one column, of one type")
        if len(self._states.keys() | set(values)) > MAX_SLICES:
            raise UserError(f"slices: more than {MAX_SLICES:,} values; put the column into buckets first")
        self._kind = kind
        for value in values:
            self._states.setdefault(value, TaskMetrics())


def _kind(column: NDArray) -> str:
    if column.ndim != 1 or column.dtype.kind not in KINDS:
        raise UserError(
            f"slices: expected a column of integers, booleans or strings, got {column.dtype}, {column.ndim}-dimensional"
        )
    return KINDS[column.dtype.kind]
