"""A run goes on where it stopped; every launcher makes the same run."""

import json

import numpy as np
import pytest
import torch

from rankmixer_dist.checkpoint.folder import checkpoints
from rankmixer_dist.checkpoint.storage import read_whole
from rankmixer_dist.config import load_config


def losses(small_config, name):
    path = load_config(small_config, [f"name={name}"]).run_dir / "metrics.jsonl"
    return [(line["step"], line["loss"]) for line in map(json.loads, path.read_text().splitlines())]


def succeed(process):
    assert process.returncode == 0, process.stderr[-3000:]
    return process


@pytest.fixture(scope="module")
def whole(launch, small_config):
    """A run of 50 steps on one rank: over 2 epochs, tail batches included."""
    succeed(launch.python("launch/train.py", str(small_config), "name=whole"))
    return losses(small_config, "whole")


@pytest.mark.parametrize("ranks", [1, 2])
def test_a_stopped_run_goes_on_exactly(launch, small_config, whole, ranks):
    name = f"name=stopped{ranks}"
    succeed(launch.forked("launch/train.py", str(small_config), name, "train.max_steps=29"))
    again = succeed(launch.forked("launch/train.py", str(small_config), name, ranks=ranks))
    assert "goes on from" in again.stdout
    found = losses(small_config, f"stopped{ranks}")
    assert [step for step, _ in found] == [step for step, _ in whole]
    if ranks == 1:
        assert found == whole
    else:  # the sum over two ranks rounds differently; 1e-7 seen
        np.testing.assert_allclose([loss for _, loss in found], [loss for _, loss in whole], rtol=1e-6)
    finished = succeed(launch.forked("launch/train.py", str(small_config), name))
    assert "nothing to do" in finished.stdout


@pytest.mark.thorough
@pytest.mark.parametrize("mode", ["token", "plain"])
def test_a_stopped_run_with_experts_goes_on_exactly(launch, small_config, mode):
    experts = ["model.rankmixer.hidden_ratio=0.5", "model.rankmixer.moe.kind=dtsi", "train.log_every=5"]
    experts += ["parallel.expert_size=2", f"parallel.mode={mode}"]
    script = ("launch/train.py", str(small_config))
    succeed(launch.forked(*script, f"name=experts-{mode}", *experts, "train.max_steps=30", ranks=2))
    stopped = [f"name=experts-{mode}-stopped", *experts]
    succeed(launch.forked(*script, *stopped, "train.max_steps=15", ranks=2))
    succeed(launch.forked(*script, *stopped, "train.max_steps=30", ranks=2))
    found, expected = (
        read_whole(checkpoints(load_config(small_config, [f"name=experts-{mode}{end}"]).run_dir)[-1] / "tensors")
        for end in ("-stopped", "")
    )
    assert found.keys() == expected.keys() and "routing/lambda" in found
    assert all(torch.equal(found[key], tensor) for key, tensor in expected.items())
    lines, undisturbed = (
        (load_config(small_config, [f"name=experts-{mode}{end}"]).run_dir / "metrics.jsonl").read_text().splitlines()
        for end in ("-stopped", "")
    )
    for kept in ("loss", "routing"):
        assert [json.loads(line)[kept] for line in lines] == [json.loads(line)[kept] for line in undisturbed]


def test_torchrun_and_deepspeed_make_the_same_run(launch, small_config):
    succeed(launch.torchrun("launch/train.py", str(small_config), "name=by_torchrun", "train.max_steps=10", ranks=2))
    succeed(launch.deepspeed("launch/train.py", str(small_config), "name=by_deepspeed", "train.max_steps=10", ranks=2))
    found = losses(small_config, "by_deepspeed")
    assert len(found) == 10
    assert found == losses(small_config, "by_torchrun")


def test_a_runs_predictions_have_its_figures(launch, small_config, whole):
    succeed(launch.forked("launch/evaluate.py", str(small_config), "name=whole"))
    run_dir = load_config(small_config, ["name=whole"]).run_dir
    before = (run_dir / "eval.json").read_bytes()
    process = launch.python("launch/evaluate.py", "--predictions", str(run_dir / "predictions"))
    succeed(process)
    assert (run_dir / "eval.json").read_bytes() == before
    found, expected = json.loads((run_dir / "predictions.eval.json").read_text()), json.loads(before)
    assert found["rows"] == expected["rows"]
    assert found["tasks"].keys() == expected["tasks"].keys()
    for task, figures in expected["tasks"].items():
        assert {name: found["tasks"][task][name] for name in figures if name != "reachable"} == {
            name: value for name, value in figures.items() if name != "reachable"
        }
        assert task in process.stdout


def test_a_run_learns(launch, small_config, whole):
    first, last = (np.mean([loss for _, loss in part]) for part in (whole[:5], whole[-5:]))
    assert last < first - 0.02
