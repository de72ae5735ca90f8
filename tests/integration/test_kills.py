"""Ranks that are killed at random moments cost a run nothing: no row, no step, no digit of a loss."""

import json
import random
import time
from contextlib import suppress
from pathlib import Path

import numpy as np
import psutil
import pyarrow.parquet as pq
import pytest
import torch

from data_pipeline.manifest import read_manifest
from rankmixer_dist.checkpoint.folder import LATEST, checkpoints, pointed
from rankmixer_dist.checkpoint.storage import read_whole
from rankmixer_dist.config import load_config
from rankmixer_dist.train.row_audit import trained_rows
from tests.integration.jobs import RANKS, Calm, Run, a_run, finish, new_ranks, torchrun, train_undisturbed, until

MOMENTS = ("starting", "training", "saving")
SEED = 1


class Killer:
    """Kills random ranks at moments of a kind."""

    def __init__(self, run: Run, launcher, start_s: float) -> None:
        self._run, self._launcher, self._random, self._start_s = run, launcher, random.Random(SEED), start_s
        self._ranks: dict[int, psutil.Process] = {}
        self.done: list[str] = []

    def kill(self, moment: str) -> None:
        """Waits for the ranks to be there and the moment to come."""
        self._ranks = new_ranks(self._launcher, self._ranks)
        getattr(self, f"_while_{moment}")()
        rank = self._random.randrange(RANKS)
        assert self._launcher.poll() is None, f"the run ended before kill {len(self.done)}; make it longer"
        self._ranks[rank].kill()
        self.done.append(f"rank {rank} while {moment}, with {self._run.lines()} steps logged")

    def _while_starting(self) -> None:
        lines = self._run.lines()
        until_s = time.monotonic() + self._random.uniform(0.0, self._start_s)
        while time.monotonic() < until_s and self._run.lines() <= lines:
            time.sleep(0.01)

    def _while_training(self) -> None:
        self._train_on(self._random.randint(1, 10))

    def _train_on(self, further: int) -> None:
        begin = self._run.lines()

        def come() -> bool:
            nonlocal begin
            begin = min(begin, lines := self._run.lines())  # a new start removes what the checkpoint does not know
            return lines >= begin + further

        until(come, f"{further} more steps are logged", self._launcher)

    def _while_saving(self) -> None:
        self._train_on(self._random.randint(0, 10))
        began = max(rank.create_time() for rank in self._ranks.values())
        folder = self._run.folder / "checkpoints"

        def being_saved() -> set[Path]:
            found = set()
            for path in folder.glob("*.partial"):
                with suppress(FileNotFoundError):
                    if path.stat().st_ctime > began:
                        found.add(path)
            return found

        while True:
            until(being_saved, "a checkpoint is being written", self._launcher)
            time.sleep(self._random.uniform(0.0, 0.03))
            if being_saved():
                return


def train_while_killing(launch, run: Run, moments: list[str], *, start_s: float, log: Path) -> None:
    """Trains a run whose launcher starts its ranks again as often as one is killed, and not once more."""
    with launch.started(*torchrun(run, max_restarts=len(moments)), log=log) as launcher:
        killer = Killer(run, launcher, start_s)
        try:
            for moment in moments:
                killer.kill(moment)
            finish(launcher, log)
        finally:
            print("\n".join(["", *killer.done]))


def train_rows(run: Run, epochs: int) -> np.ndarray:
    """The row ids of the training split, each once an epoch, in order."""
    config = load_config(run.config, run.overrides)
    folder = config.data.prepared
    shards = read_manifest(folder, config.features).splits[config.train.split]
    ids = np.concatenate([pq.read_table(folder / shard.path, columns=["row_id"])["row_id"] for shard in shards])
    return np.sort(np.tile(ids, epochs))


def tensors(run: Run) -> dict[str, torch.Tensor]:
    """Everything that the newest checkpoint holds: weights, optimizer state, random numbers."""
    return read_whole(checkpoints(run.folder)[-1] / "tensors")


def figures(launch, run: Run) -> dict:
    """AUC, UAUC and the others of every task."""
    ended = launch.torchrun("launch/evaluate.py", str(run.config), *run.overrides, ranks=RANKS)
    assert ended.returncode == 0, ended.stderr[-3000:]
    return json.loads((run.folder / "eval.json").read_text())["tasks"]


def check_nothing_is_lost(launch, calm: Calm, run: Run, kills: int, epochs: int, log: Path) -> None:
    moments = [MOMENTS[place % len(MOMENTS)] for place in range(kills)]
    random.Random(SEED).shuffle(moments)
    train_while_killing(launch, run, moments, start_s=calm.start_s, log=log)
    assert run.losses() == calm.run.losses()
    assert np.array_equal(np.sort(trained_rows(run.folder)), train_rows(run, epochs))
    assert not list(run.folder.rglob("*.partial*"))
    assert pointed(run.folder, LATEST) == checkpoints(run.folder)[-1]
    found, expected = tensors(run), tensors(calm.run)
    assert found.keys() == expected.keys()
    assert not [key for key, tensor in expected.items() if not torch.equal(found[key], tensor)]
    assert figures(launch, run) == figures(launch, calm.run)


@pytest.mark.slow
@pytest.mark.thorough
@pytest.mark.distributed
@pytest.mark.timeout(900)
def test_ranks_that_are_killed_lose_nothing(launch, calm, tmp_path):
    run = calm.run.named("killed")
    check_nothing_is_lost(launch, calm, run, kills=3, epochs=3, log=tmp_path / "log")


@pytest.mark.slow
@pytest.mark.thorough
@pytest.mark.distributed
@pytest.mark.timeout(3600)
def test_ranks_that_are_killed_twenty_times_lose_nothing(launch, small_config, tmp_path):
    run = a_run(small_config, "calm20", epochs=16, batch_size=256)
    calm = train_undisturbed(launch, run, torchrun(run), tmp_path / "calm_log")
    check_nothing_is_lost(launch, calm, run.named("killed20"), kills=20, epochs=16, log=tmp_path / "log")
