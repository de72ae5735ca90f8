"""What a worker does: read row groups, check them and leave their rows on disk in sorted runs; count a range of these.

Memory is bounded by the rows that are held at a time, however large a row group, a score's or a user's share is.
"""

import resource
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, Self

import numpy as np
from numpy.typing import NDArray

from data_pipeline.predictions.files import Columns
from data_pipeline.predictions.rows import checked_rows, pieces
from data_pipeline.sources import Unit
from rankmixer_dist.metrics import Calibration, UserAUCTotals
from rankmixer_dist.metrics.pr_auc import ClassTotals
from rankmixer_dist.metrics.row_state import RowBuffer
from rankmixer_dist.metrics.sorted_runs import KeyBounds, SortedRuns, write_run
from rankmixer_dist.metrics.spilled import (
    count_range,
    keyed_by_score,
    keyed_by_user,
    precision_of_range,
    users_of_range,
)
from rankmixer_dist.metrics.tasks import TaskMetrics

Kind = Literal["AUC", "UAUC"]


@dataclass(frozen=True)
class Room:
    """Where rows may wait, and how many a worker may hold at a time."""

    folder: Path
    memory_rows: int


@dataclass
class TaskRows:
    """What reading found of one task: its calibration figures as arrays, and where its rows wait for each metric."""

    rows: int
    without_label: int
    calibration: Mapping[str, NDArray]
    runs: Mapping[Kind, list[Path]]


@dataclass(frozen=True)
class Effort:
    """CPU seconds of a call, and the most resident memory that its process has had."""

    cpu_s: float
    peak_bytes: int

    @classmethod
    def since(cls, start: float) -> Self:
        """Of a call that began when `time.process_time` was `start`."""
        return cls(time.process_time() - start, _peak_bytes())


@dataclass
class ReadReport:
    """What a reading task found."""

    rows: int
    tasks: Mapping[str, TaskRows]
    effort: Effort


@dataclass(frozen=True)
class RangeReport:
    """Counts of a range of scores (`AUCCounts`, `WeightedAUCCounts`), or totals of a range of users as arrays."""

    counted: Any
    effort: Effort


@dataclass(frozen=True)
class PrecisionReport:
    """The sum of a range's terms, as an array."""

    sums: NDArray[np.uint8]
    effort: Effort


def read_units(units: tuple[Unit, ...], columns: Columns, room: Room) -> tuple[ReadReport]:
    """Reads row groups and leaves their rows in runs by score and by user.

    Raises:
        UserError: bytes that cannot be read, or a row that makes no sense: its file, row group and row are named.
    """
    start = time.process_time()
    readers = {task: _TaskReader(room) for task in columns.tasks}
    rows = 0
    for piece in pieces(units, columns, room.memory_rows):
        rows += piece.batch.num_rows
        for task, task_rows in checked_rows(piece, columns):
            readers[task].add(task_rows, piece.batch.num_rows)
            # Only the one with the most: if all of them went, each task would make the runs of the others shorter.
            while sum(reader.held for reader in readers.values()) >= room.memory_rows:
                max(readers.values(), key=lambda reader: reader.held).spill()
    found = {task: reader.finished() for task, reader in readers.items()}
    return (ReadReport(rows, found, Effort.since(start)),)


def count(kind: Kind, runs: Sequence[Path], bounds: KeyBounds, weighted: bool, room: Room) -> tuple[RangeReport]:
    """Counts a range of scores (AUC) or of users (UAUC) in the runs."""
    start = time.process_time()
    rows = SortedRuns.of(runs, room.folder).between(bounds)
    counted: Any
    if kind == "AUC":
        counted = count_range(rows, room.memory_rows, weighted=weighted)
    else:
        totals = UserAUCTotals()
        totals.update(users_of_range(rows, room.memory_rows, room.folder))
        counted = totals.to_arrays()
    return (RangeReport(counted, Effort.since(start)),)


def take_precision(
    runs: Sequence[Path],
    bounds: KeyBounds,
    here: ClassTotals,
    above: ClassTotals,
    whole: ClassTotals,
    weighted: bool,
    room: Room,
) -> tuple[PrecisionReport]:
    """Sums a range of scores up for PR-AUC, which takes what lies above it."""
    start = time.process_time()
    rows = SortedRuns.of(runs, room.folder).between(bounds)
    sums = precision_of_range(rows, here, above, whole, room.memory_rows, weighted=weighted)
    return (PrecisionReport(sums.to_array(), Effort.since(start)),)


def _peak_bytes() -> int:
    try:
        status = Path("/proc/self/status").read_text()
    except OSError:  # not Linux
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    return next(int(line.split()[1]) * 1024 for line in status.splitlines() if line.startswith("VmHWM:"))


@dataclass
class _TaskReader:
    """Rows of one task on their way to disk."""

    room: Room
    seen: int = 0
    buffer: RowBuffer = field(default_factory=lambda: RowBuffer(TaskMetrics.checks))
    calibration: Calibration = field(default_factory=Calibration)
    rows: int = 0
    runs: dict[Kind, list[Path]] = field(default_factory=lambda: {"AUC": [], "UAUC": []})

    @property
    def held(self) -> int:
        """Rows in memory."""
        return self.buffer.rows

    def add(self, columns: dict[str, NDArray], seen: int) -> None:
        """Rows that have a label, of so many that were seen."""
        self.seen += seen
        self.rows += len(columns["labels"])
        self.calibration.update(**{name: column for name, column in columns.items() if name != "user_ids"})
        self.buffer.append(columns, columns.get("weights"))

    def spill(self) -> None:
        """Moves the rows to disk."""
        if self.held:
            columns = self.buffer.arrays()
            self.runs["AUC"].append(write_run(keyed_by_score(columns), self.room.folder))
            self.runs["UAUC"].append(write_run(keyed_by_user(columns), self.room.folder))
        self.buffer.clear()

    def finished(self) -> TaskRows:
        """All that was found."""
        self.spill()
        return TaskRows(self.rows, self.seen - self.rows, self.calibration.to_arrays(), self.runs)
