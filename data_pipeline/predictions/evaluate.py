"""From predictions on disk to every task's figures in two stages: read and sort into runs, count range by range."""

import math
import os
import shutil
import tempfile
from functools import partial
from pathlib import Path
from typing import Any

from data_pipeline.hangup import signals_unwind
from data_pipeline.job import Job, RayJob
from data_pipeline.own_folder import OwnFolder, sweep
from data_pipeline.predictions.files import Predictions
from data_pipeline.predictions.stages import JobWorkers, read_units
from data_pipeline.progress import Reporter
from data_pipeline.ray_cluster import cluster_address
from rankmixer_dist.errors import UserError
from rankmixer_dist.evaluation.figures import figures_of
from rankmixer_dist.evaluation.sorting import SpillRoom
from rankmixer_dist.there import is_folder

GIB = 1 << 30
MEMORY_GIB = 4.0

_PREFIX = "predictions-"
_FEWER_RUNS = "raise --memory, which makes them fewer, or `ulimit -n`"

_WORKER_BYTES = 400 << 20
_BYTES_PER_ROW, _BYTES_PER_WEIGHTED_ROW = 120, 220
# More do not make it faster.
_MOST_ROWS = 1 << 22
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
        return _evaluated(predictions, job, SpillRoom(scratch.path, memory_rows, _FEWER_RUNS), reporter)


def _evaluated(predictions: Predictions, job: Job, room: SpillRoom, reporter: Reporter) -> dict[str, Any]:
    """The content of the figures' file, by way of an empty folder."""
    workers = JobWorkers(job, reporter)
    calls = [(units, predictions.columns, room) for units in job.tasks(predictions.units, most=room.memory_rows)]
    reports = workers.map("read", read_units, calls, unit="tasks", rows_of=lambda report: report.rows)
    found = figures_of(
        [report.tasks for report in reports],
        workers,
        room,
        rows_per_range=partial(job.rows_per_task, most=room.memory_rows),
    )
    return {
        "rows": sum(report.rows for report in reports),
        "tasks": {
            task: {
                **found[task][None].figures,
                "rows": sum(report.tasks[task].rows for report in reports),
                "without_label": sum(report.without_label[task] for report in reports),
            }
            for task in predictions.columns.tasks
        },
        "worker_peak_bytes": max(effort.peak_bytes for effort in workers.efforts),
        "worker_cpu_s": sum(effort.cpu_s for effort in workers.efforts),
    }


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
    return min(rows, _MOST_ROWS)


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
