"""Ray actors of a streaming evaluation: one that dies is replaced, and what it was at is done by another."""

import os
import signal
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
import ray

from data_pipeline.streaming.actors import ActorPool
from data_pipeline.streaming.scoring import SCORE_PREFIX, Item
from data_pipeline.streaming.windows import WindowPlan
from data_pipeline.streaming.worker import SerialPool, Worker
from rankmixer_dist.config import load_config
from rankmixer_dist.errors import UserError

pytestmark = [pytest.mark.slow, pytest.mark.ray, pytest.mark.timeout(300)]


@dataclass(frozen=True)
class Mortal:
    """Scores 1 where the process sees no GPU; opening it ends so many processes, one after the other."""

    folder: Path
    deaths: int

    def __call__(self, checkpoint: Path) -> "Mortal":
        for number in range(self.deaths):
            try:
                (self.folder / f"death-{number}").touch(exist_ok=False)
            except FileExistsError:
                continue
            os.kill(os.getpid(), signal.SIGKILL)
        return self

    def score(self, batch):
        return np.full(tuple(batch.labels_BK.shape), os.environ.get("CUDA_VISIBLE_DEVICES") == "", dtype=np.float32)


@ray.remote(num_cpus=1)
class Other:
    """Somebody else's actor, which holds a CPU."""


@pytest.fixture
def small_ray():
    """A Ray of two CPUs and one GPU that is only said to be there; the pool leaves it."""

    def start(**settings: object) -> None:
        ray.shutdown()  # what other tests have left
        ray.init("local", num_cpus=2, num_gpus=1, include_dashboard=False, log_to_driver=False, **settings)

    yield start
    ray.shutdown()


@pytest.fixture
def work(days_config, tmp_path):
    """Arguments of a worker whose scorer ends so many processes, and a shard to score by it."""
    config = load_config(days_config)
    plan = WindowPlan.of(config)
    shard = min(config.data.prepared.glob("day2-*.parquet"))

    def of(deaths: int) -> tuple[tuple, Path]:
        return (Mortal(tmp_path, deaths), config.features, 64, plan), shard

    return of


def finished(pool, calls: int) -> dict:
    """What all calls return."""
    results: dict = {}
    while pool.calls:
        results |= dict(pool.finished(1.0))
    assert len(results) == calls
    return results


def test_calls_wait_for_no_actor_that_is_not_there_and_survive_one_that_dies(small_ray, work, tmp_path):
    small_ray()
    worker, shard = work(1)
    serial = SerialPool(Worker(*worker))
    serial.call("serial", "scan", shard)
    facts = finished(serial, 1)["serial"]
    (window,) = facts.rows
    with pytest.raises(UserError, match="1 actors with 2 GPUs each do not fit into the 1 of the cluster; lower"):
        ActorPool(worker, actors=1, gpus_per_actor=2)
    other = Other.remote()
    ray.get(other.__ray_ready__.remote())
    with ActorPool(worker, actors=3, gpus_per_actor=0) as pool:
        assert (pool.size, pool.calls) == (2, 0)
        for number in range(4):
            pool.call(number, "scan", shard)
        assert pool.calls == 4
        assert finished(pool, 4) == dict.fromkeys(range(4), facts)  # one actor has no place and holds none of them
        ray.kill(other)
        target = tmp_path / "scores.parquet"
        pool.call("scoring", "score", Item(shard, facts.checksum, window, tmp_path / "step-1", target))
        assert finished(pool, 1) == {"scoring": facts.rows[window]}
        assert pool.replaced == 1
    scores = pq.read_table(target)
    for task in worker[1].tasks:
        assert set(scores[f"{SCORE_PREFIX}{task}"].to_pylist()) == {1.0}, "a GPU can be seen"


def test_work_that_ends_three_actors_ends_the_evaluation(small_ray, work, tmp_path):
    small_ray()
    worker, shard = work(3)
    item = Item(shard, "", None, tmp_path / "step-1", tmp_path / "scores.parquet")
    with ActorPool(worker, actors=2, gpus_per_actor=0) as pool:
        pool.call(("scoring", shard.name), "score", item)
        with pytest.raises(UserError, match=rf"scoring {shard.name} has ended 3 actors \(.*give them more memory"):
            finished(pool, 1)
        assert pool.replaced == 2


def test_actors_that_the_memory_monitor_kills_are_told_in_one_line(small_ray, work):
    small_ray(_system_config={"memory_usage_threshold": 0.01, "memory_monitor_refresh_ms": 50})
    worker, shard = work(0)
    with ActorPool(worker, actors=1, gpus_per_actor=0) as pool:
        pool.call(("reading", shard.name), "scan", shard)
        with pytest.raises(UserError, match="low on memory.*give them more memory, or lower stream.actors"):
            finished(pool, 1)
