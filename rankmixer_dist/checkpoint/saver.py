"""Writes checkpoints while the run trains on: training waits for a copy in memory, a thread does the rest."""

import sys
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import torch

from rankmixer_dist.checkpoint.about import About, File, describe_files, read_about
from rankmixer_dist.checkpoint.folder import (
    BEST,
    LATEST,
    TENSORS,
    begin,
    checkpoint_path,
    checkpoints,
    discard,
    point,
    pointed,
    prune,
    publish,
    sweep,
)
from rankmixer_dist.checkpoint.host_copies import HostCopies
from rankmixer_dist.checkpoint.index import INDEX_NAME
from rankmixer_dist.checkpoint.storage import write_pieces
from rankmixer_dist.errors import UserError, one_line
from rankmixer_dist.parallel.topology import (
    Topology,
    all_gather_objects,
    failing_together,
    gather_objects,
    new_gloo_group,
)
from rankmixer_dist.pieces import Piece
from rankmixer_dist.there import is_file, matching
from rankmixer_dist.threads import start_thread

_PATIENCE_S = 1800.0
"""A rank's disk may be slower than another's by so much; no training waits for it."""

Metrics = Mapping[str, float]
IsBetter = Callable[[Metrics, Metrics], bool]


class Saver:
    """Saves a run's state, complete or not at all; every rank has one, and all call its methods alike.

    A save that fails (a full disk, a folder that cannot be written, weights that are not finite) leaves the checkpoints
    that are there alone, says so and lets the run go on, which may have better luck with the next; `finish` raises if
    the last one failed.

    Args:
        keep: complete checkpoints to keep; older ones go once a new one is complete.
        asynchronous: False waits until each checkpoint is complete.
        is_better: whether a checkpoint's metrics (the first argument) beat those of the best so far, which is kept too
            and which `best` names; without it there is no best.
    """

    def __init__(
        self,
        run_dir: Path,
        topology: Topology,
        *,
        keep: int,
        asynchronous: bool = True,
        is_better: IsBetter | None = None,
    ) -> None:
        self._run_dir, self._topology, self._keep = run_dir, topology, keep
        self._asynchronous, self._is_better = asynchronous, is_better
        # The writing threads talk to each other while training does: a group of their own keeps the two apart.
        self._group = new_gloo_group(at_least_s=_PATIENCE_S)
        self._thread: threading.Thread | None = None
        self._failure: str | None = None
        self._copies = HostCopies()
        self.waited_s, self.failed = 0.0, 0

    def save(self, about: About, pieces: Sequence[Piece]) -> None:
        """Copies this rank's pieces and begins to write them; a save that is still under way is waited for first."""
        start = time.perf_counter()
        self._join()
        if self._topology.device.type == "cuda":
            # Whichever stream wrote the state, NCCL's among them, has done so before the state is read.
            torch.cuda.synchronize(self._topology.device)
        if self._asynchronous:
            pieces = self._copies.take(pieces)
        self._failure = None
        self._thread = start_thread(self._write, about, pieces, name="checkpoint")
        if not self._asynchronous:
            self._join()
        self.waited_s += time.perf_counter() - start

    def wait(self) -> None:
        """Waits for the save that is under way, whatever becomes of it."""
        start = time.perf_counter()
        self._join()
        self.waited_s += time.perf_counter() - start

    def finish(self) -> None:
        """Waits for the save that is under way.

        Raises:
            UserError: it could not be written.
        """
        self.wait()
        if self._failure is not None:
            raise UserError(self._failure)

    def _join(self) -> None:
        if self._thread is not None:
            self._thread.join()
            self._thread = None

    def _write(self, about: About, pieces: Sequence[Piece]) -> None:
        try:
            self._write_together(about, pieces)
        except Exception as error:
            self.failed += 1
            self._failure = self._say(about.step, error)

    def _write_together(self, about: About, pieces: Sequence[Piece]) -> None:
        final = checkpoint_path(self._run_dir, about.step)
        aside = final.with_name(final.name + ".partial")
        first = self._topology.is_first
        not_finite = [key for of_rank in all_gather_objects(_not_finite(pieces), self._group) for key in of_rank]
        if not_finite:
            raise _NotFiniteError(f"{not_finite[0]} is not finite")
        with failing_together(self._group):
            if first:
                begin(final)
        write_pieces(pieces, aside / TENSORS, group=self._group)
        files = {}
        with failing_together(self._group):
            written = [*matching(aside / TENSORS, f"__{self._topology.rank}_*")]
            files = describe_files(aside, [*written, *([aside / TENSORS / INDEX_NAME] if first else [])])
        of_all = gather_objects(files, self._group)
        with failing_together(self._group):
            if of_all is not None:
                _require_seen(aside, of_all)
                merged = {name: file for of_rank in of_all for name, file in of_rank.items()}
                about.model_copy(update={"files": merged}).write(aside)
                publish(aside, final)
                _mark_best(self._run_dir, final, about.metrics, self._is_better)
                prune(self._run_dir, keep=self._keep)

    def _say(self, step: int, error: Exception) -> str:
        final = checkpoint_path(self._run_dir, step)
        if self._topology.is_first:
            discard(final.with_name(final.name + ".partial"))
        try:
            left = checkpoints(self._run_dir)
            kept = f"{left[-1].name} is kept" if left else "there is no older one"
        except OSError as unseen:  # the disk that could not be written may not be read either
            kept = f"older ones cannot be listed ({one_line(unseen)})"
        message = f"{final}: not saved, {kept}: {one_line(error)}"
        if isinstance(error, OSError | UserError) and not isinstance(error, _NotFiniteError):
            message += "; free some space or mend the folder"
        if self._topology.is_first:
            print(f"warning: {message}", file=sys.stderr, flush=True)
        return message


def _require_seen(folder: Path, of_all: Sequence[Mapping[str, File]]) -> None:
    """Makes sure that rank 0, which seals the files, has before it what every rank has written; else nothing is sealed.

    Raises:
        UserError: a file is not there, or not the one that its rank wrote.
    """
    for rank, files in enumerate(of_all):
        for name, file in files.items():
            path = folder / name
            found = path.stat().st_size if is_file(path) else None
            if found != file.bytes:
                told = "but rank 0 sees " + ("no such file" if found is None else f"{found:,} bytes")
                raise UserError(
                    f"rank {rank} wrote {file.bytes:,} bytes into {name}, {told}; all ranks must share `runs`"
                )


class _NotFiniteError(UserError):
    """The run's weights are lost; a checkpoint of them would take the place of a good one."""


def _not_finite(pieces: Sequence[Piece]) -> list[str]:
    """Weights and optimizer state that are not finite: gradients may overflow in a step whose loss did not."""
    floats = (piece for piece in pieces if piece.tensor.is_floating_point() and piece.tensor.numel())
    # The extremes are as telling as all values, NaN included, and take no memory beside them.
    return [piece.key for piece in floats if not all(extreme.isfinite() for extreme in piece.tensor.aminmax())]


def finish_interrupted(run_dir: Path, *, keep: int, is_better: IsBetter | None) -> None:
    """What a process that was killed between publishing a run's newest checkpoint and the end of its save left to do.

    Args:
        keep, is_better: as for `Saver`.
    """
    newest = checkpoints(run_dir)[-1]
    sweep(run_dir)
    if pointed(run_dir, LATEST) != newest:
        point(newest, LATEST)
    metrics = read_about(newest).metrics
    if metrics:
        _mark_best(run_dir, newest, metrics, is_better)
    prune(run_dir, keep=keep)


def _mark_best(run_dir: Path, checkpoint: Path, metrics: Metrics, is_better: IsBetter | None) -> None:
    if is_better is None:
        return
    best = pointed(run_dir, BEST)
    if best is None or best == checkpoint or is_better(metrics, read_about(best).metrics):
        point(checkpoint, BEST)
