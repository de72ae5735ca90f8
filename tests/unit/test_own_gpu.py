"""What the process group and DeepSpeed are told by a training run: for how long, and on which device."""

from pathlib import Path
from types import SimpleNamespace

import pytest
from torch import nn

from rankmixer_dist.parallel import topology
from rankmixer_dist.parallel.deepspeed_setup import deepspeed
from rankmixer_dist.parallel.engine import DeepSpeedEngine, OptimizerSettings
from rankmixer_dist.parallel.watchdog import exchange_limit_s
from rankmixer_dist.verbs import train

ROOT = Path(__file__).resolve().parents[2]


def test_a_process_that_has_left_its_group_may_join_another() -> None:
    settings = OptimizerSettings(kind="adam", lr=0.1, weight_decay=0.0, clip_norm=None)
    for _ in range(2):
        with topology.process_group():
            DeepSpeedEngine(nn.Linear(2, 1), settings, zero_stage=1, precision="fp32", rows_per_rank=1)


def test_deepspeed_takes_the_models_device_not_that_of_the_local_rank(one_rank, monkeypatch) -> None:
    taken: list[int] = []
    monkeypatch.setenv("LOCAL_RANK", "3")  # of a process that sees its own GPU alone, which is its first
    monkeypatch.setattr(deepspeed.accelerator.get_accelerator(), "set_device", taken.append)
    settings = OptimizerSettings(kind="adam", lr=0.1, weight_decay=0.0, clip_norm=None)
    DeepSpeedEngine(nn.Linear(2, 1), settings, zero_stage=0, precision="fp32", rows_per_rank=1)
    assert taken and set(taken) == {0}


@pytest.mark.parametrize("stall_timeout_s", [None, 5.0, 3600.0])
def test_a_training_runs_exchanges_outlast_its_watchdog(monkeypatch, stall_timeout_s) -> None:
    told = {}

    def process_group(**options: float) -> None:
        told.update(options)
        raise InterruptedError

    monkeypatch.setattr(train, "check", lambda config: None)
    monkeypatch.setattr(topology, "process_group", process_group)
    with pytest.raises(InterruptedError):
        train.run(SimpleNamespace(train=SimpleNamespace(stall_timeout_s=stall_timeout_s, deterministic=False)))
    assert told == {"timeout_s": exchange_limit_s(stall_timeout_s)}
