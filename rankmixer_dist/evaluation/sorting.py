"""Scored rows of several tasks on their way into runs, sorted by score and by user."""

from collections.abc import Hashable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

import numpy as np
from numpy.typing import ArrayLike, NDArray

from rankmixer_dist.evaluation.runs import KEYS, Run, write_run
from rankmixer_dist.metrics import Calibration, TaskMetrics
from rankmixer_dist.metrics.keys import score_keys, user_keys
from rankmixer_dist.metrics.row_state import WEIGHTS, RowBuffer

Order = Literal["by score", "by user"]
Owner = Hashable
"""Whose rows they are: a task, or a task's true probabilities."""

Slice = tuple[int, int] | None
"""Rows that get figures of their own: those with one value (the second) of one slice column (the first); None: all."""


@dataclass(frozen=True)
class SpillRoom:
    """Where rows may wait, and how many a process may hold at a time.

    Attributes:
        folder: that all workers see; None keeps the rows in memory, sorted the same way.
        memory_rows: rows that are held in memory at a time, about 60 bytes each.
        fewer_runs: what a person can do where there are more runs than a process may have open files.
    """

    folder: Path | None
    memory_rows: int
    fewer_runs: str = "raise `ulimit -n`"


@dataclass
class SortedRows:
    """What one process has of one owner.

    Attributes:
        rows: how many came, those of weight 0 among them.
        calibration: its state, of all rows and of each slice.
        runs: the rows in either order.
    """

    rows: int = 0
    calibration: dict[Slice, Calibration] = field(default_factory=lambda: {None: Calibration()})
    runs: dict[Order, list[Run]] = field(default_factory=lambda: {"by score": [], "by user": []})


class Sorter:
    """Takes rows of any number of owners and leaves them in runs, in the memory of `room.memory_rows` together.

    Args:
        owners: whose rows come.
        num_slices: slice columns that come with every row.
        weighted: whether every row comes with a weight.
    """

    def __init__(
        self, owners: Sequence[Owner], room: SpillRoom, *, num_slices: int = 0, weighted: bool = False
    ) -> None:
        self._room, self._weighted = room, weighted
        checks = {**TaskMetrics.checks, **{slice_name(index): _check_slices for index in range(num_slices)}}
        self._held = {owner: RowBuffer(checks) for owner in owners}
        self.rows: dict[Owner, SortedRows] = {owner: SortedRows() for owner in owners}
        """What has been sorted of each owner: all that came, after `finish`."""

    def add(self, owner: Owner, columns: Mapping[str, ArrayLike]) -> None:
        """Rows of an owner: columns [rows] as `TaskMetrics.update` takes them, and slices under `slice_name`.

        Raises:
            ValueError: what `TaskMetrics.update` refuses; weights that are missing, or were not to come.
            UserError: the folder cannot be written or is full.
        """
        if (WEIGHTS in columns) != self._weighted:
            raise ValueError(f"rows {'with' if WEIGHTS in columns else 'without'} weights; all have them, or none")
        self._held[owner].append(columns, columns.get(WEIGHTS))
        self.rows[owner].rows += len(np.asarray(columns["labels"]))
        while self._room.folder is not None and self._rows_held() >= self._room.memory_rows:
            # Only the owner with the most: if all of them went, each would make the runs of the others shorter.
            self._sort(max(self._held, key=lambda owner: self._held[owner].rows))

    def finish(self) -> None:
        """Sorts the rows that are still held.

        Raises:
            UserError: as `add`.
        """
        for owner in self._held:
            self._sort(owner)

    def _rows_held(self) -> int:
        return sum(buffer.rows for buffer in self._held.values())

    def _sort(self, owner: Owner) -> None:
        buffer, found = self._held[owner], self.rows[owner]
        if not buffer.rows:
            return
        columns = buffer.arrays()
        buffer.clear()
        for which, own in by_slice(columns):
            del own["user_ids"]
            found.calibration.setdefault(which, Calibration()).update(**own)
        found.runs["by score"].append(write_run(keyed_by_score(columns), self._room.folder))
        found.runs["by user"].append(write_run(keyed_by_user(columns), self._room.folder))


def slice_name(index: int) -> str:
    """The column of a run that holds the values, int64 [rows], of the slice column of that number."""
    return f"slice{index}"


def slices_of(columns: Mapping[str, NDArray]) -> dict[str, NDArray]:
    """The slice columns among those of a run."""
    return {name: column for name, column in columns.items() if name.startswith("slice")}


def by_slice(columns: Mapping[str, NDArray]) -> Iterator[tuple[Slice, dict[str, NDArray]]]:
    """All rows, and then those of each value of each slice column; their other columns [rows], in the given order."""
    slices = slices_of(columns)
    others = {name: column for name, column in columns.items() if name not in slices}
    yield None, dict(others)
    for index in range(len(slices)):
        values = slices[slice_name(index)]
        order = np.argsort(values, kind="stable")
        cuts = np.flatnonzero(np.diff(values[order])) + 1
        for rows in np.split(order, cuts) if len(values) else ():
            yield (index, int(values[rows[0]])), {name: column[rows] for name, column in others.items()}


def keyed_by_score(columns: Mapping[str, NDArray]) -> dict[str, NDArray]:
    """The columns of a run for AUC, from checked columns [rows]: keys in the order of the scores; no users."""
    others = {name: column for name, column in columns.items() if name not in ("scores", "user_ids")}
    return {KEYS: score_keys(columns["scores"].astype(np.float64)), **others}


def keyed_by_user(columns: Mapping[str, NDArray]) -> dict[str, NDArray]:
    """The columns of a run for UAUC, from checked columns [rows]: keys of the users, and all others as they are."""
    others = {name: column for name, column in columns.items() if name != "user_ids"}
    return {KEYS: user_keys(columns["user_ids"]), **others}


def _check_slices(values: ArrayLike) -> NDArray[np.int64]:
    column = np.asarray(values)
    if column.dtype != np.int64 or column.ndim != 1:
        raise ValueError(f"slices: expected int64 [rows], got {column.dtype}, {column.ndim}-dimensional")
    return column
