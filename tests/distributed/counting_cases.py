"""Run by torchrun: ranks count rows that are made from a seed, in memory and from disk."""

import json
import shutil
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from unittest.mock import patch

import numpy as np
import torch

from rankmixer_dist.batch import Batch, JaggedIds
from rankmixer_dist.command_line import run_verb
from rankmixer_dist.parallel.topology import Topology, process_group
from rankmixer_dist.train.rank_counting import NotCounted, RankCounting
from rankmixer_dist.train.slice_columns import SliceColumn

ROWS, TASKS = 3001, ("like", "rare", "never")
SLICES = (
    SliceColumn("tab", lambda batch: batch.timestamp_B.numpy() % 5 - 2, "tab {}".format, "tabs"),
    SliceColumn("known", lambda batch: (batch.user_id_B.numpy() > 3).astype(np.int64), "known {}".format, "users"),
)


def rows() -> dict[str, np.ndarray]:
    """All rows: `users`, `times` [rows], `labels` with NaN where unknown, `scores` and `truth` [rows, tasks]."""
    rng = np.random.default_rng(5)
    shape = (ROWS, len(TASKS))
    scores = np.round(rng.random(shape), 2).astype(np.float32)
    labels = (rng.random(shape) < scores * (0.9, 0.05, 0)).astype(np.float32)
    labels[rng.random(shape) < 0.1] = np.nan
    users = rng.zipf(1.3, ROWS) % 97
    return {
        "users": users,
        "times": rng.integers(0, 1000, ROWS),
        "labels": labels,
        "scores": scores,
        "truth": rng.random(shape).astype(np.float32),
    }


def batches(topology: Topology, size: int = 64) -> Any:
    """This rank's batches and the scores of their rows, padding at their end."""
    columns = rows()
    mine = np.arange(topology.rank, ROWS, topology.world_size)
    for start in range(0, len(mine), size):
        own = mine[start : start + size]
        padded = np.concatenate([own, np.zeros(size - len(own), np.int64)])
        real = np.arange(size) < len(own)
        yield (
            Batch(
                row_id_B=torch.from_numpy(padded),
                user_id_B=torch.from_numpy(columns["users"][padded]),
                timestamp_B=torch.from_numpy(columns["times"][padded]),
                weight_B=torch.from_numpy(real.astype(np.float32)),
                labels_BK=torch.from_numpy(columns["labels"][padded]),
                numerics_BN=torch.zeros(size, 1),
                ids=JaggedIds.on_host((), torch.zeros(0, dtype=torch.int64), torch.zeros(0, size, dtype=torch.int32)),
                global_weight=float(len(own)),
                truth_BK=torch.from_numpy(columns["truth"][padded]),
            ),
            real,
            columns["scores"][padded],
        )


@contextmanager
def without_a_folder(counting: RankCounting) -> Iterator[None]:
    """A block of a rank that can make no folder."""
    with patch.object(Path, "mkdir", side_effect=OSError(28, "No space left on device")), counting:
        yield


def main(arguments: list[str]) -> None:
    """Takes a folder: writes `memory.json` and `disk.json` there; in the end rank 1 loses its folder.

    Before that it cannot make one. What ranks say then is in `unmade-<rank>` and `lost-<rank>`.
    """
    folder = Path(arguments[0])
    with process_group() as topology:
        for name in ("memory", "disk", "unmade", "disk again", "lost"):
            limits = {} if name == "memory" else {"gathered_rows": 0, "memory_rows": 150}
            counting = RankCounting(TASKS, SLICES, topology, rows=ROWS, scratch=folder / "rows.partial", **limits)
            told: list[Any] = []
            try:
                with without_a_folder(counting) if name == "unmade" and topology.rank == 1 else counting:
                    if name == "lost" and topology.rank == 1:
                        shutil.rmtree(folder / "rows.partial" / "rank-00001")
                    for batch, real_B, scores_BK in batches(topology):
                        counting.add(batch, real_B, scores_BK)
                    found = counting.figures(lambda *done, told=told: told.append(done))
            except NotCounted as error:
                left = [path.name for path in (folder / "rows.partial").glob(f"rank-{topology.rank:05d}")]
                (folder / f"{name}-{topology.rank}.json").write_text(json.dumps({"error": str(error), "left": left}))
                if name == "lost":
                    raise
                continue
            if topology.is_first:
                (folder / f"{name}.json").write_text(json.dumps({"found": found, "told": told}))
            else:
                assert found is None


if __name__ == "__main__":
    sys.path.insert(0, str(Path(__file__).parents[2]))
    run_verb(main)
