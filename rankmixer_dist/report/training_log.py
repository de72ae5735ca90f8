"""The training log of a run, as columns."""

import math
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from rankmixer_dist.errors import UserError
from rankmixer_dist.small_file import parse_json, read_text
from rankmixer_dist.there import is_file

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
    "own_s",
    "mem_gb",
    "skipped_steps",
    "tasks_out_of_range",
    "checkpoint_wait_s",
    "failed_checkpoints",
    "routing/active_ratio",
    "routing/target",
    "routing/lambda",
    "routing/mu",
    "routing/dead_experts",
    "routing/gate_scale",
    "routing/path_gap",
    "exchange/seconds",
    "exchange/bytes_forward",
    "exchange/bytes_backward",
    *(f"ranks/{figure}/{part}" for figure in ("own_s", "data_wait_s", "mem_gb") for part in ("median", "max", "rank")),
)
TASK_LOSS = "loss_per_task/"
TOKEN_ACTIVITY = "routing/active/"  # followed by block.token


@dataclass(frozen=True)
class TrainingLog:
    """metrics.jsonl as columns [lines], one line a step in the order of steps; what is null or absent is NaN.

    Attributes:
        columns: [lines] float64 by name, the names of `LOG_COLUMNS`.
        loss_per_task: [lines] float64 by task.
        active_per_block: [tokens, lines] float64 a block, the share of a token's experts that a row uses; none where
            the model has no experts.
    """

    columns: dict[str, NDArray[np.float64]]
    loss_per_task: dict[str, NDArray[np.float64]]
    active_per_block: list[NDArray[np.float64]]

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

    def newest(self, name: str) -> float | None:
        """Last of the column's numbers; None where it holds none."""
        values = self.columns[name]
        return float(values[np.isfinite(values)][-1]) if self.has(name) else None


def read_log(path: Path) -> TrainingLog | None:
    """Read metrics.jsonl; None where it does not exist or holds no whole line yet.

    Raises:
        UserError: a line other than the last is not JSON, or one is no line of a log.
    """
    # A resumed run repeats the steps since its checkpoint: the later line is the one whose weights live on.
    entry_of_step = {}
    for entry in read_lines(path):
        figures = dict(flat(entry))
        _check_figures(figures, path)
        entry_of_step[figures["step"]] = figures
    entries = [entry_of_step[step] for step in sorted(entry_of_step)]
    if not entries:
        return None
    return TrainingLog(
        columns={name: _column(entries, name) for name in LOG_COLUMNS},
        loss_per_task={
            name.removeprefix(TASK_LOSS): _column(entries, name) for name in _names_below(entries, TASK_LOSS)
        },
        active_per_block=_active_per_block(entries),
    )


def flat(line: Mapping[str, Any]) -> Iterator[tuple[str, Any]]:
    """The figures of a log line one by one; those of a section, at any depth, as `section/figure`."""
    for key, value in line.items():
        if isinstance(value, Mapping):
            yield from ((f"{key}/{name}", item) for name, item in flat(value))
        else:
            yield key, value


def read_lines(path: Path) -> list[dict[str, Any]]:
    """The whole lines of a metrics.jsonl, in file order; none where it does not exist.

    Raises:
        UserError: a line other than the last is not JSON, or one has no step.
    """
    lines = read_text(path, grows=True).splitlines() if is_file(path) else []
    entries = []
    for number, line in enumerate(lines, start=1):
        try:
            entry = parse_json(line, f"{path}: line {number} is")
        except UserError:
            # A run that is still writing, or was killed, leaves half a line at the end and nowhere else.
            if number == len(lines):
                break
            raise
        if not isinstance(entry, dict) or not isinstance(entry.get("step"), int):
            raise UserError(f"{path}: line {number} is no line of a log, it has no step; remove it")
        entries.append(entry)
    return entries


def _check_figures(figures: Mapping[str, Any], path: Path) -> None:
    for name, value in figures.items():
        shown = name in LOG_COLUMNS or name.startswith((TASK_LOSS, TOKEN_ACTIVITY))
        number = value is None or (isinstance(value, int | float) and abs(value) < 1e300)
        if shown and not number:
            step, text = figures["step"], str(value)[:40]
            raise UserError(f"{path}: {name} of step {step} is {text!r}, not a number; remove the line")
        if name.startswith(TOKEN_ACTIVITY) and not re.fullmatch(r"\d+\.\d+", name.removeprefix(TOKEN_ACTIVITY)):
            raise UserError(f"{path}: {name[:80]!r} names no block and token; remove its line")


def _names_below(entries: list[dict[str, Any]], section: str) -> list[str]:
    return list(dict.fromkeys(name for entry in entries for name in entry if name.startswith(section)))


def _column(entries: list[dict[str, Any]], name: str) -> NDArray[np.float64]:
    return np.array([_number(entry.get(name)) for entry in entries])


def _active_per_block(entries: list[dict[str, Any]]) -> list[NDArray[np.float64]]:
    blocks: dict[int, dict[int, NDArray[np.float64]]] = {}
    for name in _names_below(entries, TOKEN_ACTIVITY):
        block, token = map(int, name.removeprefix(TOKEN_ACTIVITY).split("."))
        blocks.setdefault(block, {})[token] = _column(entries, name)
    return [np.stack([shares for _, shares in sorted(blocks[block].items())]) for block in sorted(blocks)]


def _number(value: float | None) -> float:
    return math.nan if value is None else float(value)
