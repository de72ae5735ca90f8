"""A run whose disk is full for a while, or to the end: it trains on, and what was there stands."""

import json

import pytest

from rankmixer_dist.checkpoint.folder import checkpoints
from rankmixer_dist.checkpoint.opening import open_checkpoint
from rankmixer_dist.config import load_config
from rankmixer_dist.train.row_audit import trained_rows

STEPS, FULL, FREE = 12, 5, 9
"""Saved every 3 steps: the checkpoint of step 6 meets a full disk."""


@pytest.mark.parametrize("free", [FREE, pytest.param(STEPS + 1, marks=pytest.mark.thorough)])
def test_a_disk_that_is_full(launch, small_config, free):
    overrides = [f"name=full-until-{free}", f"train.max_steps={STEPS}", "train.audit_rows=true"]
    overrides += ["checkpoint.every=3", "checkpoint.keep=9"]
    overrides += ["checkpoint.best.split=test", "checkpoint.best.task=finish", "checkpoint.best.metric=logloss"]
    run_dir = load_config(small_config, overrides).run_dir
    ended = launch.python("tests/integration/full_disk_case.py", str(FULL), str(free), str(small_config), *overrides)
    lines = ended.stderr.splitlines()
    assert "Traceback" not in ended.stderr
    warned = [line.split(": ")[1].split("/")[-1] for line in lines if line.startswith("warning: ")]
    saved = [int(path.name[-8:]) for path in checkpoints(run_dir)]
    logged = [json.loads(line)["step"] for line in (run_dir / "metrics.jsonl").read_text().splitlines()]
    if free == FREE:
        assert ended.returncode == 0, ended.stderr[-3000:]
        assert warned == ["metrics.jsonl", "validated_rows.partial", "step-00000006.rank-00000.npy", "step-00000006"]
        assert saved == [3, 9, 12]
        assert logged == [1, 2, 3, 4, 9, 10, 11, 12]
        assert len(trained_rows(run_dir)) == len(set(trained_rows(run_dir))) == STEPS * 128
    else:
        assert ended.returncode == 2, ended.stderr[-3000:]
        assert lines[-1].startswith("error: ") and "step-00000012: not saved, step-00000003 is kept" in lines[-1]
        assert saved == [3]
        assert logged == [1, 2, 3, 4]
    for path in checkpoints(run_dir):
        open_checkpoint(path)
    assert not [*run_dir.rglob("*.partial*")]
    if free != FREE:  # there is room again
        again = launch.python("launch/train.py", str(small_config), *overrides)
        assert again.returncode == 0, again.stderr[-3000:]
        logged = [json.loads(line)["step"] for line in (run_dir / "metrics.jsonl").read_text().splitlines()]
        assert logged == [*range(1, STEPS + 1)]
        assert len(trained_rows(run_dir)) == len(set(trained_rows(run_dir))) == STEPS * 128
