"""Where in time the rows of a log lie, and what a log means whose times lie years away from all splits."""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np

_YEAR_MS = 366 * 86_400_000
_MOST = np.iinfo(np.int64).max
_UNITS = {"seconds": (1000, 1), "microseconds": (1, 1000), "nanoseconds": (1, 1_000_000)}
"""Unit -> by what a number in that unit is multiplied and divided to be ms."""


@dataclass
class TimeFound:
    """First and last time of rows, and the rows that lie more than a year outside of all splits.

    Attributes:
        first, last: Unix ms of all rows, None before any was seen.
        far_rows: How many lie so far outside; `far_first` and `far_last` of these.
        far_file: The first file that has such rows.
        in_splits_as: Unit -> how many of them would lie within a year of a split if their number had that unit.
    """

    first: int | None = None
    last: int | None = None
    far_rows: int = 0
    far_first: int | None = None
    far_last: int | None = None
    far_file: str = ""
    in_splits_as: Counter[str] = field(default_factory=Counter)

    def add(self, time_ms: np.ndarray, ranges: Sequence[tuple[int, int]], file: str) -> None:
        """Counts rows in; `ranges` are the splits' [start, end) in ms."""
        if not len(time_ms):
            return
        far = time_ms[~_near(time_ms, ranges)]
        found = TimeFound(int(time_ms.min()), int(time_ms.max()))
        if len(far):
            found.far_rows, found.far_file = len(far), file
            found.far_first, found.far_last = int(far.min()), int(far.max())
            for unit, (up, down) in _UNITS.items():
                small = (far > -_MOST // up) & (far < _MOST // up)
                found.in_splits_as[unit] = int((_near(np.where(small, far, 0) * up // down, ranges) & small).sum())
        self.merge(found)

    def merge(self, other: "TimeFound") -> None:
        """Counts the rows of another one in, which come after these."""
        self.first, self.last = _least(self.first, other.first), _most(self.last, other.last)
        self.far_first, self.far_last = _least(self.far_first, other.far_first), _most(self.far_last, other.far_last)
        self.far_rows += other.far_rows
        self.far_file = self.far_file or other.far_file
        self.in_splits_as += other.in_splits_as

    def span(self) -> str:
        """From when to when the log runs."""
        if self.first is None or self.last is None:
            return "the raw log holds none"
        return f"the raw log runs from {moment(self.first)} to {moment(self.last)}"

    def far(self) -> str | None:
        """What is to be said of rows far outside, None where there are none."""
        if self.far_first is None or self.far_last is None:
            return None
        first, last = year(self.far_first), year(self.far_last)
        years = f"the year {first}" if first == last else f"the years {first} to {last}"
        rows = f"{self.far_rows:,} rows, the first in {self.far_file}, lie"
        text = f"{rows} more than a year outside of all splits, in {years}"
        unit, count = max(self.in_splits_as.items(), key=lambda one: one[1], default=("", 0))
        if 2 * count <= self.far_rows:
            return text
        return (
            f"{text}; taken for {unit}, {count:,} of them lie where the splits are: write the column in milliseconds, "
            "or as a Parquet timestamp of the right unit"
        )


def moment(time_ms: int) -> str:
    """A time in ISO 8601, UTC, of any year."""
    return f"{_datetime(time_ms)}Z"


def year(time_ms: int) -> int:
    """The year of a time, UTC."""
    return int(_datetime(time_ms).astype("datetime64[Y]").astype(np.int64)) + 1970


def _datetime(time_ms: int) -> np.datetime64:
    # The lowest int64 is numpy's "not a time".
    return np.datetime64(max(time_ms, -_MOST), "ms")


def _near(time_ms: np.ndarray, ranges: Sequence[tuple[int, int]]) -> np.ndarray:
    return np.any([(time_ms >= start - _YEAR_MS) & (time_ms < end + _YEAR_MS) for start, end in ranges], axis=0)


def _least(one: int | None, other: int | None) -> int | None:
    return min((each for each in (one, other) if each is not None), default=None)


def _most(one: int | None, other: int | None) -> int | None:
    return max((each for each in (one, other) if each is not None), default=None)
