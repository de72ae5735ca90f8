"""From predictions on disk to every task's figures in two stages: read and sort into runs, count range by range."""

import math
import os
import shutil
import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import reduce
from pathlib import Path
from typing import Any

from data_pipeline.hangup import signals_unwind
from data_pipeline.job import Handle, Job, RayJob
from data_pipeline.own_folder import OwnFolder, sweep
from data_pipeline.predictions.files import Predictions
from data_pipeline.predictions.stages import (
    Kind,
    PrecisionReport,
    RangeReport,
    ReadReport,
    Room,
    count,
    read_units,
    take_precision,
)
from data_pipeline.progress import Reporter
from data_pipeline.ray_cluster import cluster_address
from rankmixer_dist.errors import UserError, one_line
from rankmixer_dist.metrics import Calibration, UserAUCTotals
from rankmixer_dist.metrics.exact_sum import ExactSums
from rankmixer_dist.metrics.pr_auc import NOBODY, ClassTotals
from rankmixer_dist.metrics.sorted_runs import KeyBounds, SortedRuns
from rankmixer_dist.metrics.spilled import average_precision_of, counts_together
from rankmixer_dist.metrics.tasks import task_figures
from rankmixer_dist.there import is_folder

GIB = 1 << 30
MEMORY_GIB = 4.0

_PREFIX = "predictions-"
_KINDS: tuple[Kind, Kind] = ("AUC", "UAUC")
Owner = tuple[str, Kind]

_WORKER_BYTES = 400 << 20
_BYTES_PER_ROW, _BYTES_PER_WEIGHTED_ROW = 120, 600
# More do not make it faster. Weights of very different sizes take several times the usual memory, for which this leaves
# room.
_MOST_ROWS, _MOST_WEIGHTED_ROWS = 1 << 22, 1 << 20
_FEWEST_ROWS = 1 << 16
# By score, by user, and by score again for a user with more rows than fit.
_DISK_BYTES_PER_ROW, _DISK_BYTES_PER_WEIGHTED_ROW = 9 + 17 + 9, 17 + 25 + 17


def evaluate_predictions(
    predictions: Predictions,
    *,
    memory_gib: float = MEMORY_GIB,
    memory_rows: int | None = None,
    spill: Path | None = None,
    job: Job | None = None,
    progress: bool = True,
) -> dict[str, Any]:
    """Exact figures of all tasks, those of `TaskMetrics` to the last bit, for any number of rows.

    Args:
        predictions: where the rows are, and their columns.
        memory_gib: resident memory that no worker exceeds.
        memory_rows: rows that a worker holds at a time, instead of as many as fit `memory_gib`.
        spill: folder with room for the rows, shared by all workers; the system's folder of temporary files by default.
            What is written there is gone at the end, after SIGKILL at the next start.
        job: where it runs; Ray by default.
        progress: shows the stages on stderr.

    Returns:
        As eval.json: `rows`, and `tasks` with each one's figures, `rows` (those with a label) and `without_label`;
        `worker_peak_bytes`, the most resident memory that a worker had, and `worker_cpu_s`, what all took together.

    Raises:
        UserError: a row that makes no sense, bytes that cannot be read, a folder without room.
    """
    reporter = Reporter(shown=progress)
    for note in predictions.notes:
        reporter.warn(note)
    weighted = predictions.columns.weight is not None
    if memory_rows is None:
        memory_rows = rows_in_memory(memory_gib, weighted=weighted)
    if spill is None and job is None and cluster_address() is not None:
        raise UserError("RAY_ADDRESS is set: name a folder that all hosts of the cluster share by --spill")
    parent = Path(tempfile.gettempdir()) if spill is None else spill
    for line in sweep(parent, _PREFIX):
        reporter.say(line)
    _require_room(parent, predictions, weighted=weighted)
    if job is None:
        with reporter.stage("start Ray", None):
            job = RayJob()
    with signals_unwind(), OwnFolder(parent, _PREFIX) as scratch:
        return _Evaluation(predictions, job, Room(scratch.path, memory_rows), reporter).figures()


def rows_in_memory(memory_gib: float, *, weighted: bool) -> int:
    """Rows that a worker of so much memory can hold at a time.

    Raises:
        UserError: too little for a worker to start, or no finite number.
    """
    if not math.isfinite(memory_gib):
        raise UserError(f"--memory {memory_gib:g}: give a number of GiB, such as {MEMORY_GIB:g}")
    per_row = _BYTES_PER_WEIGHTED_ROW if weighted else _BYTES_PER_ROW
    rows = int(memory_gib * GIB - _WORKER_BYTES) // per_row
    if rows < _FEWEST_ROWS:
        least = (_WORKER_BYTES + _FEWEST_ROWS * per_row) / GIB
        raise UserError(f"--memory {memory_gib:g}: a worker needs {least:.1f} GiB at least")
    return min(rows, _MOST_WEIGHTED_ROWS if weighted else _MOST_ROWS)


@dataclass(frozen=True)
class _Ranges:
    """Ranges of a task's rows in one order: the runs, which all of them share, and the keys of each."""

    runs: Handle
    bounds: Sequence[KeyBounds]


@dataclass
class _Evaluation:
    """One run of both stages over an empty folder."""

    predictions: Predictions
    job: Job
    room: Room
    reporter: Reporter

    def figures(self) -> dict[str, Any]:
        """The content of the figures' file."""
        reports = self._read()
        ranges = self._ranges(reports)
        counted = self._count(ranges)
        precisions = self._take_precision(ranges, counted)
        efforts = [report.effort for report in reports]
        efforts += [report.effort for parts in (counted, precisions) for part in parts.values() for report in part]
        return {
            "rows": sum(report.rows for report in reports),
            "tasks": {task: self._task(task, reports, counted, precisions[task]) for task in precisions},
            "worker_peak_bytes": max(effort.peak_bytes for effort in efforts),
            "worker_cpu_s": sum(effort.cpu_s for effort in efforts),
        }

    @property
    def _weighted(self) -> bool:
        return self.predictions.columns.weight is not None

    def _rows_per_range(self, rows: int) -> int:
        return self.job.rows_per_task(rows, most=self.room.memory_rows)

    def _read(self) -> list[ReadReport]:
        tasks = self.job.tasks(self.predictions.units, most=self.room.memory_rows)
        calls = [(units, self.predictions.columns, self.room) for units in tasks]
        reports: dict[int, ReadReport] = {}
        with self.reporter.stage("read", len(calls), "tasks") as advance:
            for index, _, report in self.job.map(read_units, calls, held=0):
                reports[index] = report
                advance(report.rows)
        return [reports[index] for index in range(len(calls))]

    def _ranges(self, reports: Sequence[ReadReport]) -> dict[Owner, _Ranges]:
        """Of each task and metric; one after the other, for all runs of one are open meanwhile."""
        owners = [(task, kind) for task in self.predictions.columns.tasks for kind in _KINDS]
        found: dict[Owner, _Ranges] = {}
        with self.reporter.stage("find ranges", len(owners), "orders") as advance:
            for task, kind in owners:
                paths = [run for report in reports for run in report.tasks[task].runs[kind]]
                try:
                    runs = SortedRuns.of(paths, self.room.folder)
                    bounds = runs.bounds(self._rows_per_range(runs.rows))
                except OSError as error:
                    mend = "raise --memory, which makes them fewer, or `ulimit -n`"
                    raise UserError(f"{len(paths)} sorted runs cannot be opened, {mend}: {one_line(error)}") from error
                found[task, kind] = _Ranges(self.job.share(paths), bounds)
                advance(0)
        return found

    def _count(self, ranges: Mapping[Owner, _Ranges]) -> dict[Owner, list[RangeReport]]:
        """The reports of each task's and metric's ranges, in ascending order."""
        calls = {
            owner: [(owner[1], own.runs, bounds, self._weighted, self.room) for bounds in own.bounds]
            for owner, own in ranges.items()
        }
        return self._map("count", count, calls)

    def _take_precision(
        self, ranges: Mapping[Owner, _Ranges], counted: Mapping[Owner, Sequence[RangeReport]]
    ) -> dict[str, list[PrecisionReport]]:
        """The reports of each task's ranges of scores; PR-AUC needs the counts of those above."""
        calls: dict[str, list[tuple]] = {}
        for task in self.predictions.columns.tasks:
            totals = [report.counted.class_totals for report in counted[task, "AUC"]]
            whole, above = reduce(ClassTotals.plus, totals, NOBODY), NOBODY
            calls[task] = []
            own = ranges[task, "AUC"]
            for bounds, here in reversed(list(zip(own.bounds, totals, strict=True))):
                calls[task].append((own.runs, bounds, here, above, whole, self._weighted, self.room))
                above = above.plus(here)
        return self._map("PR-AUC", take_precision, calls)

    def _map(self, title: str, function: Callable[..., tuple], calls: Mapping[Any, Sequence[tuple]]) -> dict[Any, list]:
        """The reports of every owner's calls, in their order, all as one stage."""
        flat = [(owner, call) for owner, own in calls.items() for call in own]
        reports: dict[int, Any] = {}
        with self.reporter.stage(title, len(flat), "ranges") as advance:
            for index, _, report in self.job.map(function, [call for _, call in flat], held=0):
                reports[index] = report
                advance(0)  # a row is in several ranges
        found: dict[Any, list] = {owner: [] for owner in calls}
        for index, (owner, _) in enumerate(flat):
            found[owner].append(reports[index])
        return found

    def _task(
        self,
        task: str,
        reports: Sequence[ReadReport],
        counted: Mapping[Owner, Sequence[RangeReport]],
        precisions: Sequence[PrecisionReport],
    ) -> dict[str, Any]:
        calibration, users, precision = Calibration(), UserAUCTotals(), ExactSums(1)
        for report in reports:
            calibration.merge(Calibration.from_arrays(report.tasks[task].calibration))
        for part in counted[task, "UAUC"]:
            users.merge(UserAUCTotals.from_arrays(part.counted))
        for terms in precisions:
            precision.merge(ExactSums.from_array(terms.sums))
        auc = counts_together(part.counted for part in counted[task, "AUC"])
        pr_auc = average_precision_of(precision, auc.class_totals, weighted=self._weighted)
        return {
            **task_figures(auc.result(), pr_auc, users.compute(), calibration.compute()),
            "rows": sum(report.tasks[task].rows for report in reports),
            "without_label": sum(report.tasks[task].without_label for report in reports),
        }


def _require_room(parent: Path, predictions: Predictions, *, weighted: bool) -> None:
    """Raises a `UserError` where the rows would not fit the disk."""
    if not is_folder(parent):
        raise UserError(f"--spill {parent}: no such folder")
    if not os.access(parent, os.W_OK):
        raise UserError(f"{parent}: cannot be written; name another folder by --spill")
    per_row = _DISK_BYTES_PER_WEIGHTED_ROW if weighted else _DISK_BYTES_PER_ROW
    needed = predictions.rows * len(predictions.columns.tasks) * per_row
    free = shutil.disk_usage(parent).free
    if needed > free:
        gigabytes, left = (f"{number / 1e9:,.1f} GB" for number in (needed, free))
        raise UserError(f"{parent}: the rows need up to {gigabytes} here, {left} are free; name another by --spill")
