"""Time cut into windows of equal length."""

import time
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime

import numpy as np

from rankmixer_dist.config import RunConfig
from rankmixer_dist.config.stream import HOUR_S
from rankmixer_dist.metrics import Window

_MS = 1000
_LAST_MS = 253_402_300_799_999 - 366 * 86_400_000
"""A year before the last that a date can be of."""


@dataclass(frozen=True)
class WindowPlan:
    """Windows of `length_ms` that follow each other from `start_ms` on, both whole seconds.

    ahead_ms: how far ahead of the clock a row may be, None for anywhere.
    """

    start_ms: int
    length_ms: int
    ahead_ms: int | None = None

    @classmethod
    def of(cls, config: RunConfig) -> "WindowPlan":
        """As the config's `stream` section says."""
        start = config.stream.start or min(split.start for split in config.data.splits.values())
        seconds = round(config.stream.window_hours * HOUR_S)
        ahead = config.stream.ahead_hours
        ahead_ms = None if ahead is None else round(ahead * HOUR_S * _MS)
        return cls(int(start.timestamp()) * _MS, seconds * _MS, ahead_ms)

    @property
    def latest_ms(self) -> int:
        """The latest time that a row can have."""
        return _LAST_MS if self.ahead_ms is None else min(_LAST_MS, round(time.time() * _MS) + self.ahead_ms)

    def at(self, time_ms: int) -> Window:
        """The window that a time at or after the start belongs to."""
        start = time_ms - (time_ms - self.start_ms) % self.length_ms
        return Window(start, start + self.length_ms)

    def named(self, text: str) -> Window:
        """The window that starts at a time in ISO 8601, with or without its separators."""
        return self.at(round(datetime.fromisoformat(text).timestamp() * _MS))

    def count(self, times_R: np.ndarray) -> tuple[Mapping[Window, int], int]:
        """Rows of each window, in order, and those before the first one; times_R int64 [rows] Unix ms."""
        inside_R = times_R[times_R >= self.start_ms]
        numbers, rows = np.unique((inside_R - self.start_ms) // self.length_ms, return_counts=True)
        counts = {
            self.at(self.start_ms + number * self.length_ms): count
            for number, count in zip(numbers.tolist(), rows.tolist(), strict=True)
        }
        return counts, len(times_R) - len(inside_R)
