"""A damaged checkpoint ends both verbs with one line that names the file and the way back, which then works."""

import json

import pytest

from rankmixer_dist.checkpoint.folder import checkpoints
from rankmixer_dist.config import load_config

OVERRIDES = ["name=damaged", "checkpoint.every=6", "checkpoint.keep=3"]


def error_lines(process):
    return [line for line in process.stderr.splitlines() if line.startswith("error: ")]


@pytest.mark.thorough
def test_a_damaged_checkpoint(launch, small_config):
    run_dir = load_config(small_config, OVERRIDES).run_dir
    trained = launch.forked("launch/train.py", str(small_config), *OVERRIDES, "train.max_steps=15")
    assert trained.returncode == 0, trained.stderr[-3000:]
    *_, before, newest = checkpoints(run_dir)
    assert (before.name, newest.name) == ("step-00000012", "step-00000015")
    damaged = max((newest / "tensors").iterdir(), key=lambda path: path.stat().st_size)
    data = bytearray(damaged.read_bytes())
    data[len(data) // 2] ^= 1
    damaged.write_bytes(data)

    lines = (run_dir / "metrics.jsonl").read_text()
    longer = [*OVERRIDES, "train.max_steps=18"]
    for verb, ranks in (("train", 2), ("evaluate", None)):
        arguments = (f"launch/{verb}.py", str(small_config), *longer)
        refused = launch.forked(*arguments, ranks=ranks)
        (line,) = error_lines(refused)
        assert line.startswith(f"error: {damaged}: damaged: ")
        assert line.endswith(f"; to go on from step-00000012, the one before it, move the folder {newest} away")
        assert refused.returncode == 2
    assert (run_dir / "metrics.jsonl").read_text() == lines
    assert not (run_dir / "eval.json").exists()

    newest.rename(newest.with_name(newest.name + "_damaged"))
    evaluated = launch.forked("launch/evaluate.py", str(small_config), *longer)
    assert evaluated.returncode == 0, evaluated.stderr[-3000:]
    assert json.loads((run_dir / "eval.json").read_text())["checkpoint"] == "checkpoints/step-00000012"
    again = launch.forked("launch/train.py", str(small_config), *longer)
    assert again.returncode == 0, again.stderr[-3000:]
    assert f"goes on from {before}" in again.stdout
    found = [json.loads(line) for line in (run_dir / "metrics.jsonl").read_text().splitlines()]
    assert [line["step"] for line in found] == [*range(1, 19)]
    losses = [json.loads(line)["loss"] for line in lines.splitlines()]
    assert [line["loss"] for line in found][:15] == losses  # steps 13 to 15 were taken twice, alike
    assert checkpoints(run_dir)[-1].name == "step-00000018"
