"""The proof that a run trained on every row once: the ids of the rows of each step, on disk."""

import os
import re
from pathlib import Path

import numpy as np

from rankmixer_dist.batch import Batch
from rankmixer_dist.parallel.topology import Topology, failing_together
from rankmixer_dist.there import matching
from rankmixer_dist.train.full_disk import Complaint

FOLDER_NAME = "rows_trained"
_NAME = re.compile(r"step-(\d{8,18})\.rank-\d{5,}\.(npy|partial)", re.ASCII)


class RowAudit:
    """Writes the ids of a rank's rows since the checkpoint before, as each checkpoint is made.

    A run that goes on from a checkpoint forgets the files of later steps, as it forgets what it learnt in them; so the
    files of a run are, at any time, the rows that its newest checkpoint has seen.
    """

    def __init__(self, run_dir: Path, topology: Topology, *, resume_step: int) -> None:
        self._folder, self._rank = run_dir / FOLDER_NAME, topology.rank
        self._ids: list[np.ndarray] = []
        self._complaint = Complaint("its rows are kept for the file of the next checkpoint")
        with failing_together():
            if topology.is_first:
                self._folder.mkdir(exist_ok=True)
                self._forget(resume_step)

    def _forget(self, resume_step: int) -> None:
        for path in matching(self._folder, "step-*"):
            found = _NAME.fullmatch(path.name)
            if found and (int(found[1]) > resume_step or path.suffix == ".partial"):
                path.unlink()

    def add(self, batch: Batch) -> None:
        """The rows of a step that was taken."""
        self._ids.append(batch.row_id_B[batch.weight_B > 0].cpu().numpy())

    def write(self, step: int) -> None:
        """Writes the rows up to `step`; on a full disk the next call writes these too, and that is told once."""
        path = self._folder / f"step-{step:08d}.rank-{self._rank:05d}.npy"
        aside = path.with_suffix(".partial")
        with self._complaint.instead_of_error(path):
            try:
                with aside.open("wb") as file:
                    np.save(file, np.concatenate([np.empty(0, np.int64), *self._ids]))
                os.replace(aside, path)
            except OSError:
                aside.unlink(missing_ok=True)
                raise
            self._ids.clear()


def trained_rows(run_dir: Path) -> np.ndarray:
    """Ids of all rows that a run has trained on, once for each time."""
    paths = [path for path in sorted(matching(run_dir / FOLDER_NAME, "step-*.npy")) if _NAME.fullmatch(path.name)]
    parts = [np.load(path) for path in paths]
    return np.concatenate([np.empty(0, np.int64), *parts])
