"""The figures of each value of a column, gathered while a split is scored."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from rankmixer_dist.batch import Batch
from rankmixer_dist.metrics import SlicedMetrics, ValueCounts
from rankmixer_dist.train.slice_columns import SliceColumn

_ROWS = "rows"


class SlicedScores:
    """One column's states on one rank, which add up over the ranks. Keeps the scored rows once more."""

    def __init__(self, column: SliceColumn, tasks: Sequence[str]) -> None:
        self.column = column
        self._tasks = {task: SlicedMetrics() for task in tasks}
        self._rows = ValueCounts()

    def update(self, batch: Batch, real_B: NDArray[np.bool_], scores_BK: NDArray[np.floating]) -> None:
        """Add those rows of a batch that are marked."""
        values, scores = self.column.values(batch)[real_B], scores_BK[real_B]
        labels, users = batch.labels_BK.numpy()[real_B], batch.user_id_B.numpy()[real_B]
        self._rows.update(values)
        for place, state in enumerate(self._tasks.values()):
            labelled = ~np.isnan(labels[:, place])
            state.update(values[labelled], scores[labelled, place], labels[labelled, place], users[labelled])

    def to_arrays(self) -> dict[str, Any]:
        """The states, as one rank sends them to another."""
        return {
            _ROWS: self._rows.to_arrays(),
            "tasks": {task: state.to_arrays() for task, state in self._tasks.items()},
        }

    def merge(self, arrays: Mapping[str, Any]) -> None:
        """Add another rank's states, as `to_arrays` gave them."""
        self._rows.merge(ValueCounts.from_arrays(arrays[_ROWS]))
        for task, state in self._tasks.items():
            state.merge(SlicedMetrics.from_arrays(arrays["tasks"][task]))

    def compute(self) -> dict[str, Any]:
        """Value -> its `rows`, and `tasks`: the figures of each task that has a labelled row there."""
        figures = {task: state.compute() for task, state in self._tasks.items()}
        return {
            self.column.label(value): {
                "rows": rows,
                "tasks": {task: by_value[value] for task, by_value in figures.items() if value in by_value},
            }
            for value, rows in zip(self._rows.values.tolist(), self._rows.counts.tolist(), strict=True)
        }
