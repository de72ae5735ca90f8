"""Rows in sorted runs, on disk or in memory, read back range by range, so that memory does not grow with the rows."""

import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from rankmixer_dist.errors import UserError, one_line
from rankmixer_dist.metrics.keys import key_order

KEYS = "keys"

Run = Path | Mapping[str, NDArray]
"""Rows that ascend by a column `keys` of uint64: a folder of one .npy file a column, or the columns [rows] themselves.

A run is never changed, and a folder can be read by other processes than the one that wrote it.
"""


def write_run(columns: Mapping[str, NDArray], folder: Path | None) -> Run:
    """Rows, at least one, as a run of its own inside the folder, or in memory: columns [rows], `keys` among them.

    Raises:
        UserError: the folder cannot be written or is full.
    """
    order = key_order(columns[KEYS])
    if folder is None:
        return {name: column[order] for name, column in columns.items()}
    with _spilling(folder):
        path = Path(tempfile.mkdtemp(prefix="run-", dir=folder))
        for name, column in columns.items():
            np.save(path / f"{name}.npy", column[order], allow_pickle=False)
    return path


@contextmanager
def _spilling(folder: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        mend = "free some space or name another folder"
        raise UserError(f"cannot spill rows to {folder}, {mend}: {one_line(error)}") from error


@dataclass(frozen=True)
class KeyBounds:
    """Keys from `first` up to, but without, `end`."""

    first: int
    end: int


class SortedRuns:
    """The rows of several runs, in the order of their keys."""

    def __init__(self, runs: Sequence[Run]) -> None:
        self._runs = [_OpenRun(run) for run in runs]

    def ranges(self, max_rows: int) -> Iterator["KeyRange"]:
        """All rows in ranges of ascending keys, at most `max_rows` each; a key with more rows is a range of its own.

        Raises:
            OSError: as `bounds`.
        """
        for bounds in self.bounds(max_rows):
            yield self.between(bounds)

    def bounds(self, max_rows: int) -> list[KeyBounds]:
        """Of each of the `ranges`: what this or another process needs to know to take its rows with `between`.

        Raises:
            OSError: more runs than this process may have open files; each is one while this goes on.
        """
        all_keys = [run.keys for run in self._runs]
        starts = [0] * len(all_keys)
        ends = [len(keys) for keys in all_keys]
        found = []
        while starts != ends:
            unread = [keys[start:] for keys, start in zip(all_keys, starts, strict=True)]
            lowest = min(int(keys[0]) for keys in unread if len(keys))
            # The largest end that leaves no more than max_rows rows below it, found bit by bit.
            end, too_high = lowest + 1, (1 << 64) + 1
            while too_high - end > 1:
                middle = (end + too_high) // 2
                if sum(_below(keys, middle) for keys in all_keys) - sum(starts) <= max_rows:
                    end = middle
                else:
                    too_high = middle
            found.append(KeyBounds(lowest, end))
            starts = [_below(keys, end) for keys in all_keys]
        return found

    def between(self, bounds: KeyBounds) -> "KeyRange":
        """The rows whose keys lie there; opens one run at a time."""
        pieces = []
        for run in self._runs:
            keys = run.keys
            pieces.append((run, _below(keys, bounds.first), _below(keys, bounds.end)))
        return KeyRange(pieces)


class KeyRange:
    """The rows of some consecutive keys: a slice of each run."""

    def __init__(self, pieces: list[tuple["_OpenRun", int, int]]) -> None:
        self._pieces = [piece for piece in pieces if piece[1] < piece[2]]
        self.rows = sum(stop - start for _, start, stop in self._pieces)
        self.names = tuple(dict.fromkeys(name for run, _, _ in self._pieces for name in run.names))

    def arrays(self) -> dict[str, NDArray]:
        """All columns [rows] by name."""
        return {name: self._column(name) for name in self.names}

    def _column(self, name: str) -> NDArray:
        # One run is open at a time: there may be more of them than a process may have open files.
        joined: NDArray | None = None
        filled = 0
        for run, start, stop in self._pieces:
            part = run.column(name)[start:stop]
            if joined is None:
                joined = np.empty(self.rows, part.dtype)
            # Nothing happens but where runs differ: float32 scores give way to float64.
            joined = joined.astype(np.result_type(joined, part), copy=False)
            joined[filled : filled + len(part)] = part
            filled += len(part)
        assert joined is not None  # a column has a run that it is of
        return joined

    def chunks(self, max_rows: int) -> Iterator[dict[str, NDArray]]:
        """The same rows in any order, at most `max_rows` at a time."""
        for run, start, stop in self._pieces:
            for first in range(start, stop, max_rows):
                yield KeyRange([(run, first, min(first + max_rows, stop))]).arrays()


class _OpenRun:
    """A run as columns. Nothing of one on disk is open but the columns that somebody holds."""

    def __init__(self, run: Run) -> None:
        self._run = run
        stems = (file.stem for file in run.iterdir()) if isinstance(run, Path) else run
        self.names = tuple(sorted(stems))

    @property
    def keys(self) -> NDArray[np.uint64]:
        """The keys [rows], an open file for as long as the array lives."""
        # The same memory as a plain array: a memmap is several times as slow to search.
        return self.column(KEYS).view(np.ndarray)

    def column(self, name: str) -> NDArray:
        """A column [rows], read from disk where it is looked at."""
        if not isinstance(self._run, Path):
            return self._run[name]
        # Mapped anew each time: pages that were read do not pile up in the process.
        return np.load(self._run / f"{name}.npy", mmap_mode="r", allow_pickle=False)


def _below(keys: NDArray[np.uint64], key: int) -> int:
    """How many of the keys, which ascend, are smaller."""
    return len(keys) if key == 1 << 64 else int(np.searchsorted(keys, np.uint64(key)))
