"""Which checkpoint scores a window, and how it stays there until the window is done."""

import os
import shutil
import threading
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, Protocol

from rankmixer_dist.errors import UserError, one_line
from rankmixer_dist.there import is_there, matching

_PARTIAL = ".partial"


class Checkpoint(Protocol):
    """A complete checkpoint of the run that is followed (`train/following.py`)."""

    @property
    def path(self) -> Path: ...
    @property
    def step(self) -> int: ...
    @property
    def trained_until(self) -> int | None:
        """Unix ms; no row at or after it has been trained on."""
        ...

    @property
    def ends_split(self) -> bool:
        """No later checkpoint has the same `trained_until`."""
        ...


class TrainingRun(Protocol):
    """The run that is followed."""

    def checkpoints(self) -> Iterable[Checkpoint]:
        """Those that are there now."""
        ...

    def describe(self, path: Path) -> Checkpoint:
        """A checkpoint of the run, wherever it lies."""
        ...

    def due(self, start: int) -> int | None:
        """Until when rows before `start` are trained on: the end (Unix ms) of the last split that ends by then."""
        ...

    def state(self) -> Literal["running", "stopped", "finished"]:
        """stopped: nobody trains, though the run is not at its end."""
        ...


@dataclass(frozen=True)
class Choice:
    """What scores a window, for good: a checkpoint, or none for a reason."""

    checkpoint: str | None
    step: int | None = None
    trained_until: int | None = None
    reason: str | None = None


@dataclass(frozen=True)
class Dropped:
    """A checkpoint that is no longer there."""

    path: Path
    step: int
    trained_until: int | None
    ends_split: bool = False


def is_settled(start: int, known: Iterable[Checkpoint]) -> bool:
    """Whether no better checkpoint for a window that starts then can still come: training has reached it."""
    reached = [(each.trained_until, each.ends_split) for each in known if each.trained_until is not None]
    return any(until > start or (until == start and whole) for until, whole in reached)


def newest_before(start: int, known: Iterable[Checkpoint]) -> Checkpoint | None:
    """The checkpoint with the most training of those that were trained on nothing at or after the start."""
    fitting = [each for each in known if each.trained_until is not None and each.trained_until <= start]
    return max(fitting, key=lambda each: each.step, default=None)


def comes_short(best: Checkpoint, due: int | None) -> bool:
    """Whether training has, or had, a better one: up to `due`, all of it."""
    assert best.trained_until is not None
    return due is not None and (best.trained_until < due or (best.trained_until == due and not best.ends_split))


class Pins:
    """Checkpoints that stay though training removes its own: hard links where the file system has them, else copies."""

    def __init__(self, folder: Path, describe: Callable[[Path], Checkpoint]) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        for left in matching(folder, f"*{_PARTIAL}"):
            shutil.rmtree(left)
        self._folder, self._describe = folder, describe
        self.held = {path.name: describe(path) for path in sorted(folder.iterdir())}

    def pin(self, checkpoint: Checkpoint) -> None:
        """Keeps a checkpoint, unless training removes it at this moment.

        Raises:
            UserError: it cannot be written.
        """
        final = self._folder / checkpoint.path.name
        aside = final.with_name(final.name + _PARTIAL)
        try:
            shutil.copytree(checkpoint.path, aside, copy_function=_link)
            os.replace(aside, final)
        except OSError as error:
            shutil.rmtree(aside, ignore_errors=True)
            if is_there(checkpoint.path):
                raise UserError(f"{final}: cannot be kept ({one_line(error)}); free some space") from error
            return
        self.held[final.name] = self._describe(final)

    def pin_all(self, run: TrainingRun, horizon: int) -> bool:
        """Keeps what is published and may be chosen by a window from `horizon` (Unix ms) on; whether any was new."""
        new = [each for each in run.checkpoints() if each.path.name not in self.held]
        for checkpoint in new:
            if not self.is_superseded(checkpoint, horizon):
                self.pin(checkpoint)
        return any(each.path.name in self.held for each in new)

    @contextmanager
    def pinning(self, run: TrainingRun, horizon: int, every_s: float) -> Iterator[None]:
        """Pins in the background during a `with` block that takes seconds, in which training may remove checkpoints."""
        stop = threading.Event()

        def work() -> None:
            with suppress(UserError, OSError):  # the loop, which comes next, meets the same and tells
                self.pin_all(run, horizon)
                while not stop.wait(every_s):
                    self.pin_all(run, horizon)

        thread = threading.Thread(target=work, name="pinning", daemon=True)
        thread.start()
        try:
            yield
        finally:
            stop.set()
            thread.join()

    def superseded(self, needed: Iterable[str], horizon: int) -> list[Checkpoint]:
        """Those that are not needed and that no window from `horizon` (Unix ms) on can choose."""
        spare = self.held.keys() - set(needed)
        return [self.held[name] for name in sorted(spare) if self.is_superseded(self.held[name], horizon)]

    def remove(self, checkpoint: Checkpoint) -> None:
        """Keeps it no longer."""
        name = checkpoint.path.name
        gone = self._folder / (name + _PARTIAL)
        os.replace(self._folder / name, gone)
        shutil.rmtree(gone)
        del self.held[name]

    def is_superseded(self, checkpoint: Checkpoint, horizon: int) -> bool:
        """Whether every window from `horizon` on would rather take another one that is held."""
        until = checkpoint.trained_until
        if until is None:
            return True
        later = [each.trained_until for each in self.held.values() if each.step > checkpoint.step]
        return any(other is not None and other <= max(until, horizon) for other in later)


def _link(source: str, target: str) -> None:
    with suppress(OSError):
        os.link(source, target)
        return
    shutil.copy2(source, target)
