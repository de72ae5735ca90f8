"""Figures of one window of time, which belong to its rows and its checkpoint and cannot be pooled with another's.

A feature that carries a user's own outcomes, refreshed between two windows, tells them apart: pooled, rows of the later
window rank above or below those of the earlier one by when they came. Measured on KuaiRand, a user mean that runs on
inside the scored span pushes AUC up and breaks UAUC (.31 even with labels shuffled inside each user).
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Self, TypedDict

import numpy as np
from numpy.typing import ArrayLike, NDArray

from rankmixer_dist.errors import UserError
from rankmixer_dist.metrics.state import ArrayState
from rankmixer_dist.metrics.tasks import TaskFigures, TaskMetrics


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


class WindowMetrics(ArrayState):
    """Mergeable `TaskMetrics` of every task over one window's rows, all scored with the same checkpoint.

    Args:
        checkpoint: its name.
    """

    def __init__(self, window: Window, checkpoint: str, tasks: Sequence[str]) -> None:
        self.window, self.checkpoint = window, checkpoint
        self._tasks = {task: TaskMetrics() for task in tasks}

    def update(self, task: str, scores: ArrayLike, labels: ArrayLike, user_ids: ArrayLike) -> None:
        """Add a task's rows, as `TaskMetrics.update` takes them."""
        self._tasks[task].update(scores, labels, user_ids)

    def merge(self, other: Self) -> None:
        """Add the rows of another state to this one.

        Raises:
            UserError: it is of another window or another checkpoint, or has other tasks.
        """
        if other.window != self.window:
            raise UserError(
                f"windows {self.window} and {other.window} are not pooled: what a user's features know is refreshed in "
                "between, and that breaks UAUC; report each window, or their mean"
            )
        if other.checkpoint != self.checkpoint or other._tasks.keys() != self._tasks.keys():
            raise UserError(
                f"window {self.window}: scores of {self.checkpoint} ({', '.join(self._tasks)}) and of "
                f"{other.checkpoint} ({', '.join(other._tasks)}) do not rank against each other; score all its rows "
                "with one checkpoint"
            )
        for task, metrics in other._tasks.items():
            self._tasks[task].merge(metrics)

    def compute(self) -> dict[str, TaskFigures]:
        """Every task's figures."""
        return {task: metrics.compute() for task, metrics in self._tasks.items()}

    def to_arrays(self) -> dict[str, NDArray]:
        """`window` int64 [2], `checkpoint`, `tasks`, and the columns of each task as `<task>/<column>`."""
        about = {
            "window": np.array([self.window.start, self.window.end], np.int64),
            "checkpoint": np.array(self.checkpoint),
            "tasks": np.array(list(self._tasks), np.str_),
        }
        columns = {task: metrics.to_arrays() for task, metrics in self._tasks.items()}
        return about | {f"{task}/{name}": values for task, own in columns.items() for name, values in own.items()}

    @classmethod
    def from_arrays(cls, arrays: Mapping[str, NDArray]) -> Self:
        """The state that `to_arrays` was called on.

        Raises:
            ValueError: other array names, or values that `update` refuses.
        """
        missing = {"window", "checkpoint", "tasks"} - arrays.keys()
        if missing:
            raise ValueError(f"arrays without {', '.join(sorted(missing))}")
        start, end = arrays["window"].tolist()
        state = cls(Window(start, end), str(arrays["checkpoint"]), arrays["tasks"].tolist())
        for task in state._tasks:
            own = {name.removeprefix(f"{task}/"): v for name, v in arrays.items() if name.startswith(f"{task}/")}
            state._tasks[task] = TaskMetrics.from_arrays(own)
        return state


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
