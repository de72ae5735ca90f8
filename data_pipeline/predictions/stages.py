"""What a worker does beside counting: read row groups, check their rows, and leave them in sorted runs."""

import functools
import resource
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

from data_pipeline.job import Job
from data_pipeline.predictions.files import Columns
from data_pipeline.predictions.rows import checked_rows, pieces
from data_pipeline.progress import Reporter
from data_pipeline.sources import Unit
from rankmixer_dist.evaluation.sorting import Owner, SortedRows, Sorter, SpillRoom


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
    """What a reading task found: rows, those without a label of each task, and where the others wait."""

    rows: int
    without_label: Mapping[str, int]
    tasks: Mapping[Owner, SortedRows]


def read_units(units: tuple[Unit, ...], columns: Columns, room: SpillRoom) -> ReadReport:
    """Reads row groups and leaves their rows in runs by score and by user.

    Memory is bounded by the rows that are held at a time, however large a row group is.

    Raises:
        UserError: bytes that cannot be read, or a row that makes no sense: its file, row group and row are named.
    """
    sorter = Sorter(list(columns.tasks), room, weighted=columns.weight is not None)
    without_label = dict.fromkeys(columns.tasks, 0)
    rows = 0
    for piece in pieces(units, columns, room.memory_rows):
        rows += piece.batch.num_rows
        for task, task_rows in checked_rows(piece, columns):
            without_label[task] += piece.batch.num_rows - len(task_rows["labels"])
            sorter.add(task, task_rows)
    sorter.finish()
    return ReadReport(rows, without_label, sorter.rows)


class JobWorkers:
    """Counts on Ray, or wherever a job runs; shows the stages and adds up what they took."""

    def __init__(self, job: Job, reporter: Reporter) -> None:
        self._job, self._reporter = job, reporter
        self.efforts: list[Effort] = []

    def share(self, value: Any) -> Any:
        """A handle of the job."""
        return self._job.share(value)

    def map(
        self,
        title: str,
        function: Callable[..., Any],
        calls: Sequence[tuple],
        *,
        unit: str = "ranges",
        rows_of: Callable[[Any], int] = lambda _: 0,
    ) -> list[Any]:
        """What the calls return, in order; `rows_of` a result are told as done."""

        @functools.wraps(function)
        def measured(*call: Any) -> tuple[tuple[Any, Effort]]:
            start = time.process_time()
            return ((function(*call), Effort.since(start)),)

        found: dict[int, Any] = {}
        with self._reporter.stage(title, len(calls), unit) as advance:
            for index, _, (result, effort) in self._job.map(measured, calls, held=0):
                found[index] = result
                self.efforts.append(effort)
                advance(rows_of(result))
        return [found[index] for index in range(len(calls))]


def _peak_bytes() -> int:
    try:
        status = Path("/proc/self/status").read_text()
    except OSError:  # not Linux
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    return next(int(line.split()[1]) * 1024 for line in status.splitlines() if line.startswith("VmHWM:"))
