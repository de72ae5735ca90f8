"""Finds the rows behind a loss that is not finite, and keeps their ids."""

import json
from pathlib import Path
from typing import Any

from torch import Tensor

from rankmixer_dist.batch import Batch
from rankmixer_dist.errors import UserError
from rankmixer_dist.parallel.topology import Topology, all_gather_objects
from rankmixer_dist.there import is_there
from rankmixer_dist.train.full_disk import Complaint, RecordFile
from rankmixer_dist.train.metrics_log import cut_back

FILE_NAME = "non_finite.jsonl"
ADVICE = "lower dense.lr or sparse.lr, add warm-up, or set dense.clip_norm"
_SKIPS_IN_A_ROW = 10
"""So many batches left out one after the other are no bad rows: the weights themselves are not finite."""


class NonFiniteRows:
    """Remembers the rows of the latest steps until their loss is known to be finite.

    Whether it is comes to light once a log interval, when the loss is read anyway: asking each step would make a GPU
    wait. Rows that are found are appended to `non_finite.jsonl` in the run directory.

    Args:
        resume_step: the run's newest step; later ones that were left out, and will be again, are removed.
    """

    def __init__(self, run_dir: Path, topology: Topology, *, resume_step: int) -> None:
        self._path, self._topology = run_dir / FILE_NAME, topology
        complaint = Complaint("the run goes on without these lines until they can be written")
        self._lines = RecordFile(self._path, complaint)
        if topology.is_first and is_there(self._path):
            with complaint.instead_of_error(self._path):
                cut_back(self._path, resume_step, keep=lambda line: not line["skipped"])
        self._recent: list[tuple[int, Tensor, Tensor]] = []
        self._skips = 0

    def add(self, step: int, batch: Batch, bad_B: Tensor) -> None:
        """A step that was taken."""
        self._recent.append((step, batch.row_id_B, bad_B))
        self._skips = 0

    def clear(self) -> None:
        """All steps so far were finite."""
        self._recent.clear()

    def skip(self, step: int, batch: Batch, bad_B: Tensor) -> None:
        """A step that was left out on all ranks, which all call this.

        Raises:
            UserError: it was not the first of many.
        """
        rows = self._write(step, batch.row_id_B[bad_B].tolist(), skipped=True)
        self._skips += 1
        if self._skips >= _SKIPS_IN_A_ROW:
            raise UserError(
                f"{self._skips} batches in a row have a loss that is not finite, the last at step {step} with {rows} "
                f"bad rows: it is the weights, not the rows ({self._path}); {ADVICE}"
            )

    def stop(self) -> None:
        """Finds the first of the remembered steps that was not finite; all ranks call it.

        Raises:
            UserError: always.
        """
        mine = next(((step, ids_B[bad_B].tolist()) for step, ids_B, bad_B in self._recent if bad_B.any()), None)
        steps = [found[0] for found in all_gather_objects(mine) if found is not None]
        first = min(steps, default=self._recent[0][0])
        rows = self._write(first, mine[1] if mine is not None and mine[0] == first else [], skipped=False)
        raise UserError(
            f"the loss is not finite at step {first}: {rows} rows, whose ids are in {self._path}; look at them, set "
            f"train.on_non_finite=skip to leave such batches out, or {ADVICE}"
        )

    def _write(self, step: int, row_ids: list[int], *, skipped: bool) -> int:
        """Appends the rows of all ranks, and says how many they are."""
        rows = sorted(row for of_rank in all_gather_objects(row_ids) for row in of_rank)
        if self._topology.is_first:
            line: dict[str, Any] = {"step": step, "row_ids": rows, "skipped": skipped}
            self._lines.append((json.dumps(line) + "\n").encode())
        return len(rows)
