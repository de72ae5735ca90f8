"""From predictions on disk to every task's figures in two stages: read and sort into runs, count range by range."""

import os
import shutil
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

from numpy.typing import NDArray

from data_pipeline.job import Job, RayJob
from data_pipeline.predictions.files import Predictions
from data_pipeline.predictions.stages import Kind, RangeReport, ReadReport, Room, count, read_units
from data_pipeline.progress import Reporter
from rankmixer_dist.errors import UserError
from rankmixer_dist.metrics import Calibration, UserAUCTotals
from rankmixer_dist.metrics.sorted_runs import RunSlice, SortedRuns
from rankmixer_dist.metrics.spilled import counts_together
from rankmixer_dist.metrics.tasks import task_figures

GIB = 1 << 30
MEMORY_GIB = 4.0

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
            What is written there is gone at the end, however that comes.
        job: where it runs; Ray by default.
        progress: shows the stages on stderr.

    Returns:
        As eval.json: `rows`, and `tasks` with each one's figures, `rows` (those with a label) and `without_label`;
        `worker_peak_bytes`, the most resident memory that a worker had, and `worker_cpu_s`, what all took together.

    Raises:
        UserError: a row that makes no sense, bytes that cannot be read, a folder without room.
    """
    reporter = Reporter(shown=progress)
    weighted = predictions.columns.weight is not None
    if memory_rows is None:
        memory_rows = rows_in_memory(memory_gib, weighted=weighted)
    if spill is None and job is None and os.environ.get("RAY_ADDRESS"):
        raise UserError("RAY_ADDRESS is set: name a folder that all hosts of the cluster share by --spill")
    parent = Path(tempfile.gettempdir()) if spill is None else spill
    _require_room(parent, predictions, weighted=weighted)
    if job is None:
        with reporter.stage("start Ray", None):
            job = RayJob()
    with tempfile.TemporaryDirectory(prefix="predictions-", dir=parent, ignore_cleanup_errors=True) as folder:
        run = _Evaluation(predictions, job, Room(Path(folder).resolve(), memory_rows), reporter)
        return run.figures()


def rows_in_memory(memory_gib: float, *, weighted: bool) -> int:
    """Rows that a worker of so much memory can hold at a time.

    Raises:
        UserError: too little for a worker to start.
    """
    per_row = _BYTES_PER_WEIGHTED_ROW if weighted else _BYTES_PER_ROW
    rows = int(memory_gib * GIB - _WORKER_BYTES) // per_row
    if rows < _FEWEST_ROWS:
        least = (_WORKER_BYTES + _FEWEST_ROWS * per_row) / GIB
        raise UserError(f"--memory {memory_gib:g}: a worker needs {least:.1f} GiB at least")
    return min(rows, _MOST_WEIGHTED_ROWS if weighted else _MOST_ROWS)


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
        runs = {
            (task, kind): SortedRuns.of(
                [run for report in reports for run in report.tasks[task].runs[kind]], self.room.folder
            )
            for task in self.predictions.columns.tasks
            for kind in _KINDS
        }
        counted = self._count(runs)
        efforts = [report.effort for report in reports]
        efforts += [report.effort for part in counted.values() for report in part]
        return {
            "rows": sum(report.rows for report in reports),
            "tasks": {task: self._task(task, reports, counted) for task in self.predictions.columns.tasks},
            "worker_peak_bytes": max(effort.peak_bytes for effort in efforts),
            "worker_cpu_s": sum(effort.cpu_s for effort in efforts),
        }

    def _read(self) -> list[ReadReport]:
        tasks = self.job.tasks(self.predictions.units, most=self.room.memory_rows)
        calls = [(units, self.predictions.columns, self.room) for units in tasks]
        reports: dict[int, ReadReport] = {}
        with self.reporter.stage("read", len(calls), "tasks") as advance:
            for index, _, report in self.job.map(read_units, calls, held=0):
                reports[index] = report
                advance(report.rows)
        return [reports[index] for index in range(len(calls))]

    def _count(self, runs: dict[tuple[str, Kind], SortedRuns]) -> dict[tuple[str, Kind], list[RangeReport]]:
        """The reports of each task's and metric's ranges, in ascending order."""
        weighted = self.predictions.columns.weight is not None
        calls: list[tuple[Kind, Sequence[RunSlice], bool, Room]] = []
        owners: list[tuple[str, Kind]] = []
        for owner, own in runs.items():
            for rows in own.ranges(self.job.rows_per_task(own.rows, most=self.room.memory_rows)):
                calls.append((owner[1], rows.slices(), weighted, self.room))
                owners.append(owner)
        reports: dict[int, RangeReport] = {}
        with self.reporter.stage("count", len(calls), "ranges of scores and users") as advance:
            for index, _, report in self.job.map(count, calls, held=0):
                reports[index] = report
                advance(0)  # every row is in a range of scores and in one of users
        found: dict[tuple[str, Kind], list[RangeReport]] = {owner: [] for owner in runs}
        for index, owner in enumerate(owners):
            found[owner].append(reports[index])
        return found

    def _task(
        self, task: str, reports: Sequence[ReadReport], counted: dict[tuple[str, Kind], list[RangeReport]]
    ) -> dict[str, Any]:
        calibration, users = Calibration(), UserAUCTotals()
        for report in reports:
            calibration.merge(Calibration.from_arrays(report.tasks[task].calibration))
        for part in counted[task, "UAUC"]:
            users.merge(UserAUCTotals.from_arrays(cast(Mapping[str, NDArray], part.counted)))
        auc = counts_together(part.counted for part in counted[task, "AUC"])
        return {
            **task_figures(auc.result(), users.compute(), calibration.compute()),
            "rows": sum(report.tasks[task].rows for report in reports),
            "without_label": sum(report.tasks[task].without_label for report in reports),
        }


_KINDS: tuple[Kind, Kind] = ("AUC", "UAUC")


def _require_room(parent: Path, predictions: Predictions, *, weighted: bool) -> None:
    """Raises a `UserError` where the rows would not fit the disk."""
    if not parent.is_dir():
        raise UserError(f"--spill {parent}: no such folder")
    if not os.access(parent, os.W_OK):
        raise UserError(f"{parent}: cannot be written; name another folder by --spill")
    per_row = _DISK_BYTES_PER_WEIGHTED_ROW if weighted else _DISK_BYTES_PER_ROW
    needed = predictions.rows * len(predictions.columns.tasks) * per_row
    free = shutil.disk_usage(parent).free
    if needed > free:
        gigabytes, left = (f"{number / 1e9:,.1f} GB" for number in (needed, free))
        raise UserError(f"{parent}: the rows need up to {gigabytes} here, {left} are free; name another by --spill")
