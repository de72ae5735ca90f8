"""The training log of a run, as columns."""

import json
import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from rankmixer_dist.errors import UserError

LOG_COLUMNS = (
    "step",
    "epoch",
    "rows",
    "loss",
    "lr",
    "sparse_lr",
    "samples_per_s",
    "mfu",
    "step_s",
    "data_wait_s",
    "sparse_s",
    "dense_s",
    "comm_s",
    "mem_gb",
    "skipped_steps",
    "checkpoint_wait_s",
)


@dataclass(frozen=True)
class TrainingLog:
    """metrics.jsonl as columns [lines], one line a step in the order of steps; what is null or absent is NaN.

    Attributes:
        columns: [lines] float64 by name, the names of `LOG_COLUMNS`.
        loss_per_task: [lines] float64 by task.
    """

    columns: dict[str, NDArray[np.float64]]
    loss_per_task: dict[str, NDArray[np.float64]]

    def has(self, name: str) -> bool:
        """Whether the column holds at least one number."""
        return bool(np.isfinite(self.columns[name]).any())

    def largest(self, name: str) -> float:
        """Largest of the column's numbers, of which there is at least one."""
        return float(np.nanmax(self.columns[name]))

    def total(self, name: str) -> float:
        """Sum of the column's numbers."""
        return float(np.nansum(self.columns[name]))

    def median(self, name: str) -> float | None:
        """Median of the column's numbers; None where it holds none."""
        return float(np.nanmedian(self.columns[name])) if self.has(name) else None


def read_log(path: Path) -> TrainingLog | None:
    """Read metrics.jsonl; None where it does not exist or holds no whole line yet.

    Raises:
        UserError: a line other than the last is not JSON.
    """
    # A resumed run repeats the steps since its checkpoint: the later line is the one whose weights live on.
    entry_of_step = {entry["step"]: entry for entry in read_lines(path)}
    entries = [entry_of_step[step] for step in sorted(entry_of_step)]
    if not entries:
        return None
    tasks = list(dict.fromkeys(task for entry in entries for task in entry.get("loss_per_task") or {}))
    return TrainingLog(
        columns={name: np.array([_number(entry.get(name)) for entry in entries]) for name in LOG_COLUMNS},
        loss_per_task={
            task: np.array([_number((entry.get("loss_per_task") or {}).get(task)) for entry in entries])
            for task in tasks
        },
    )


def read_lines(path: Path) -> list[dict[str, Any]]:
    """The whole lines of a metrics.jsonl, in file order; none where it does not exist.

    Raises:
        UserError: a line other than the last is not JSON.
    """
    lines = path.read_text().splitlines() if path.is_file() else []
    entries = []
    for number, line in enumerate(lines, start=1):
        try:
            entries.append(json.loads(line))
        except json.JSONDecodeError as error:
            # A run that is still writing, or was killed, leaves half a line at the end and nowhere else.
            if number == len(lines):
                break
            raise UserError(f"{path}: line {number} is not JSON ({error})") from error
    return entries


def _number(value: float | None) -> float:
    return math.nan if value is None else float(value)
