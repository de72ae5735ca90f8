"""Figures of one window of time, which belong to its rows and its checkpoint and cannot be pooled with another's.

A feature that carries a user's own outcomes, refreshed between two windows, tells them apart: pooled, rows of the later
window rank above or below those of the earlier one by when they came. Measured on KuaiRand, a user mean that runs on
inside the scored span pushes AUC up and breaks UAUC (.31 even with labels shuffled inside each user).
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import TypedDict

import numpy as np

from rankmixer_dist.metrics.tasks import TaskFigures


@dataclass(frozen=True, order=True)
class Window:
    """Rows with start <= time < end, in Unix milliseconds, both whole seconds."""

    start: int
    end: int

    @property
    def name(self) -> str:
        """Its start in UTC, as part of a path: 20260102T000000Z."""
        return f"{_time(self.start):%Y%m%dT%H%M%SZ}"

    def __str__(self) -> str:
        return f"{iso(self.start)} to {iso(self.end)}"


class WindowMean(TypedDict):
    """A task's mean over the windows that have the figure; None where none has."""

    auc: float | None
    uauc: float | None


def mean_over_windows(windows: Iterable[Mapping[str, TaskFigures]]) -> dict[str, WindowMean]:
    """The mean of each task's figures, every window counting the same; it is no figure of the rows together."""
    values: dict[str, dict[str, list[float]]] = {}
    for tasks in windows:
        for task, figures in tasks.items():
            of_task = values.setdefault(task, {"auc": [], "uauc": []})
            for name, value in (("auc", figures["auc"]), ("uauc", figures["uauc"])):
                if value is not None:
                    of_task[name].append(value)
    return {task: {"auc": _mean(found["auc"]), "uauc": _mean(found["uauc"])} for task, found in values.items()}


def _mean(values: Sequence[float]) -> float | None:
    return float(np.mean(values)) if values else None


def iso(time_ms: int) -> str:
    """Unix milliseconds as 2026-01-02T00:00:00Z."""
    time = _time(time_ms)
    return time.strftime("%Y-%m-%dT%H:%M:%S") + (f".{time_ms % 1000:03d}Z" if time_ms % 1000 else "Z")


def _time(time_ms: int) -> datetime:
    return datetime.fromtimestamp(time_ms / 1000, UTC)
