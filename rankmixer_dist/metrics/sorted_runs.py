"""Rows on disk in sorted runs, and read back range by range, so that memory does not grow with the rows."""

import json
import os
import shutil
import tempfile
import weakref
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Self

import numpy as np
from numpy.typing import NDArray

from rankmixer_dist.errors import UserError, one_line
from rankmixer_dist.metrics.keys import key_order
from rankmixer_dist.there import is_there

KEYS = "keys"
ABOUT = "state.json"


class SortedRuns:
    """Rows with a column `keys` of uint64, kept as runs: folders of one .npy file a column, sorted by key.

    Merging takes over the runs of another by name and copies nothing; a run is never changed. What is written lies in
    a folder of its own, which is removed when no `SortedRuns` needs it any more.

    Args:
        folder: where there is room for all rows.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._scratch: _Scratch | None = None
        self._runs: list[_Run] = []

    @property
    def rows(self) -> int:
        """Rows in all runs."""
        return sum(run.rows for run in self._runs)

    @property
    def names(self) -> set[str]:
        """Columns that any run has."""
        return {name for run in self._runs for name in run.names}

    def append(self, columns: Mapping[str, NDArray]) -> None:
        """Write rows as a run: columns [rows], `keys` among them.

        Raises:
            UserError: the folder cannot be written or is full.
        """
        if len(columns[KEYS]) == 0:
            return
        if self._scratch is None:
            with _spilling(self._folder):
                self._scratch = _Scratch(self._folder)
        self._runs.append(_Run.at(write_run(columns, self._scratch.path), self._scratch))

    @classmethod
    def of(cls, paths: Iterable[Path], folder: Path) -> Self:
        """Runs that `write_run` wrote, perhaps in other processes; they stay when this object goes."""
        runs = cls(folder)
        runs._runs = [_Run.at(path, None) for path in paths]
        return runs

    def merge(self, other: Self) -> None:
        """Take over the runs of another, which stays as it is."""
        self._runs.extend(list(other._runs))

    def ranges(self, max_rows: int) -> Iterator["KeyRange"]:
        """All rows in ranges of ascending keys, at most `max_rows` each; a key with more rows is a range of its own.

        Raises:
            OSError: more runs than this process may have open files; each is one while this goes on.
        """
        for _, starts, stops in self._cut(max_rows):
            yield KeyRange(list(zip(self._runs, starts, stops, strict=True)))

    def bounds(self, max_rows: int) -> list["KeyBounds"]:
        """Of each of the `ranges`: what another process needs to know to take its rows with `between`.

        Raises:
            OSError: as `ranges`.
        """
        return [bounds for bounds, _, _ in self._cut(max_rows)]

    def between(self, bounds: "KeyBounds") -> "KeyRange":
        """The rows whose keys lie there; opens one run at a time."""
        pieces = []
        for run in self._runs:
            keys = run.keys
            pieces.append((run, _below(keys, bounds.first), _below(keys, bounds.end)))
        return KeyRange(pieces)

    def _cut(self, max_rows: int) -> Iterator[tuple["KeyBounds", list[int], list[int]]]:
        """Of each range the keys, and of each run the first row in it and the first one after it."""
        all_keys = [run.keys for run in self._runs]
        starts = [0] * len(all_keys)
        ends = [len(keys) for keys in all_keys]
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
            stops = [_below(keys, end) for keys in all_keys]
            yield KeyBounds(lowest, end), starts, stops
            starts = stops

    def save(self, path: Path, kind: str) -> None:
        """Put all runs into a new folder, which is complete or absent; linked where the file system can, else copied.

        Raises:
            UserError: the folder is there already.
            OSError: it cannot be written.
        """
        if is_there(path):
            raise UserError(f"{path} is there already: remove it or save elsewhere")
        aside = Path(tempfile.mkdtemp(prefix=f"{path.name}.", suffix=".partial", dir=path.parent))
        try:
            for number, run in enumerate(self._runs):
                (aside / f"{number:06d}").mkdir()
                for column in run.path.iterdir():
                    _link(column, aside / f"{number:06d}" / column.name)
            (aside / ABOUT).write_text(json.dumps({"kind": kind, "rows": [run.rows for run in self._runs]}))
            aside.chmod(0o755)
            aside.rename(path)
        finally:
            shutil.rmtree(aside, ignore_errors=True)

    @classmethod
    def load(cls, path: Path, kind: str, folder: Path) -> Self:
        """The runs that were saved, read where they lie; what comes after goes to `folder`.

        Raises:
            UserError: no such folder, one of another kind of state, or runs that lack rows.
        """
        loaded = cls(folder)
        try:
            about = json.loads((path / ABOUT).read_text())
            if about["kind"] != kind:
                raise UserError(f"{path} holds {about['kind']}, not {kind}: name the folder of such a state")
            for number, rows in enumerate(about["rows"]):
                run = _Run.at(path / f"{number:06d}", None)
                lengths = {run.rows, *(len(run.column(name)) for name in run.names)}
                if lengths != {rows}:
                    raise ValueError(f"run {number} has columns of {sorted(lengths)} rows, not {rows}")
                loaded._runs.append(run)
        except UserError:
            raise
        # A damaged header makes numpy raise nearly anything.
        except Exception as error:
            raise UserError(f"cannot read {path} as {kind}, save it again: {one_line(error)}") from error
        return loaded


def write_run(columns: Mapping[str, NDArray], folder: Path) -> Path:
    """Write rows, at least one, as a run of its own inside the folder: columns [rows], `keys` among them.

    Raises:
        UserError: the folder cannot be written or is full.
    """
    order = key_order(columns[KEYS])
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


class KeyRange:
    """The rows of some consecutive keys: a slice of each run."""

    def __init__(self, pieces: list[tuple["_Run", int, int]]) -> None:
        self._pieces = [piece for piece in pieces if piece[1] < piece[2]]
        self.rows = sum(stop - start for _, start, stop in self._pieces)
        self.names = tuple(dict.fromkeys(name for run, _, _ in self._pieces for name in run.names))

    def arrays(self) -> dict[str, NDArray]:
        """All columns [rows] by name; a run without a column that others have (weights) counts as ones."""
        return {name: self._column(name) for name in self.names}

    def _column(self, name: str) -> NDArray:
        # One run is open at a time: there may be more of them than a process may have open files.
        joined: NDArray | None = None
        filled = 0
        for run, start, stop in self._pieces:
            part = run.column(name)[start:stop] if name in run.names else np.ones(stop - start)
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


@dataclass(frozen=True)
class _Run:
    """A run that was written; holding its scratch folder keeps that alive. Nothing of it is open."""

    path: Path
    names: tuple[str, ...]
    scratch: "_Scratch | None"

    @classmethod
    def at(cls, path: Path, scratch: "_Scratch | None") -> Self:
        """The run of that folder."""
        return cls(path, tuple(sorted(file.stem for file in path.iterdir())), scratch)

    @property
    def rows(self) -> int:
        """How many."""
        return len(self.column(KEYS))

    @property
    def keys(self) -> NDArray[np.uint64]:
        """The keys [rows], an open file for as long as the array lives."""
        # The same memory as a plain array: a memmap is several times as slow to search.
        return self.column(KEYS).view(np.ndarray)

    def column(self, name: str) -> NDArray:
        """A column [rows], read from disk where it is looked at."""
        # Mapped anew each time: pages that were read do not pile up in the process.
        return np.load(self.path / f"{name}.npy", mmap_mode="r", allow_pickle=False)


class _Scratch:
    """A new folder that goes when the last one who holds this object does, or the process ends."""

    def __init__(self, parent: Path) -> None:
        parent.mkdir(parents=True, exist_ok=True)
        self.path = Path(tempfile.mkdtemp(prefix="metric-rows-", dir=parent))
        weakref.finalize(self, _remove, self.path, os.getpid())


def _remove(path: Path, owner: int) -> None:
    # A forked child that ends must not take its parent's rows along.
    if os.getpid() == owner:
        shutil.rmtree(path, ignore_errors=True)


def _below(keys: NDArray[np.uint64], key: int) -> int:
    """How many of the keys, which ascend, are smaller."""
    return len(keys) if key == 1 << 64 else int(np.searchsorted(keys, np.uint64(key)))


def _link(source: Path, target: Path) -> None:
    try:
        os.link(source, target)
    except OSError:
        shutil.copyfile(source, target)
