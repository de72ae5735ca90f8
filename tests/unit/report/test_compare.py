"""Runs side by side: which belong together, what sets them apart, and their figures over seeds."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from rankmixer_dist.config.yaml_text import SECTIONS
from rankmixer_dist.errors import UserError
from rankmixer_dist.report.compare import Spread, compare, lines_of, markdown

ROOT = Path(__file__).resolve().parents[3]


def write_run(folder: Path, auc: float, uauc: float | None = 0.6, *, seed: int, rows: int = 100, **config) -> Path:
    """A run directory with what a comparison reads; `model__backbone="x"` sets a nested key."""
    folder.mkdir()
    keys = {section: {} for section in SECTIONS}
    keys |= {"name": folder.name, "seed": seed, "model": {"backbone": "rankmixer", "dim": 8}, "checkpoint": {"keep": 2}}
    for path, value in config.items():
        section, _, key = path.partition("__")
        keys[section][key] = value
    (folder / "config.yaml").write_text(json.dumps(keys))
    figures = {"auc": auc, "uauc": uauc, "uauc_unweighted": 0.5, "logloss": 0.3, "ne": 0.9, "calibration": 1.0}
    figures |= {"auc_ci95": [0.1, 0.9], "positives": 5, "users_scored": 3}
    content = {"rows": rows, "split": "test", "checkpoint": "c", "tasks": {"finish": figures}}
    (folder / "eval.json").write_text(json.dumps(content))
    dense = {"parameters": 1200, "flops_per_row_forward": 2400, "flops_per_row_train": 7200}
    plan = {"world_size": 1, "tables": [], "bytes_per_rank": [0], "dense": dense}
    (folder / "plan.json").write_text(json.dumps(plan))
    lines = [{"step": step, "samples_per_s": 10.0 * seed * step, "loss_per_task": {}} for step in (1, 2, 3)]
    (folder / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    return folder


def test_seeds_make_one_group_and_other_configs_others(tmp_path):
    runs = [
        write_run(tmp_path / "a1", 0.70, seed=1),
        write_run(tmp_path / "w1", 0.72, seed=1, model__backbone="wukong"),
        write_run(tmp_path / "a2", 0.74, seed=2, checkpoint__keep=5),  # kept otherwise, learnt alike
        write_run(tmp_path / "w3", 0.73, None, seed=3, model__backbone="wukong"),
    ]
    found = compare(runs)
    assert [group.label for group in found.groups] == ["rankmixer", "wukong"]
    first, second = found.groups
    assert first.figure("finish", "auc") == Spread(pytest.approx(0.72), 0.70, 0.74)
    assert second.figure("finish", "uauc") is None  # undefined for one seed
    difference = second.difference(first, "finish", "auc")  # seed 1 is the only one that both have
    assert (difference.mean, difference.low, difference.high) == pytest.approx((0.02, 0.02, 0.02))
    assert first.rows_per_s == 35.0  # of 20, 30, 40, 60: the first lines warm up
    line, other = lines_of(found, differences=True)
    assert line.figures == ["0.7200 (0.7000 to 0.7400)", "0.6000"]
    assert line.size == ["1,200", "2,400", "35"]
    assert (other.seeds, other.figures) == ("1", ["+0.0200", "+0.0000"])
    head, rule, *rows = markdown(found, lines_of(found, differences=False)).splitlines()
    assert head.startswith("|  | seeds | finish AUC | finish UAUC | parameters")
    assert rule.count("---") == head.count("|") - 1
    assert rows[1].startswith("| wukong | 2 | 0.7250 (0.7200 to 0.7300) | – |")


def test_runs_with_experts_say_how_many_are_active(tmp_path):
    dense = write_run(tmp_path / "dense", 0.70, seed=1)
    sparse = [write_run(tmp_path / f"s{seed}", 0.71, seed=seed, model__backbone="moe") for seed in (1, 2)]
    for path, ratio in zip(sparse, (0.125, 0.25), strict=True):
        content = json.loads((path / "eval.json").read_text())
        content["routing"] = {"active_ratio": ratio, "dead_experts": 0, "gate_scale": 0.5}
        (path / "eval.json").write_text(json.dumps(content))
    found = compare([dense, *sparse])
    assert found.size_columns[-1] == "active experts" and "active experts" in markdown(
        found, lines_of(found, differences=True)
    )
    without, line = lines_of(found, differences=True)
    assert (without.size[-1], line.size[-1]) == ("–", "18.8% (12.5% to 25.0%)")
    assert "active experts" not in compare([dense]).size_columns


def test_several_differing_keys_are_named(tmp_path):
    runs = [
        write_run(tmp_path / "a", 0.7, seed=1),
        write_run(tmp_path / "b", 0.7, seed=1, model__dim=16),
        write_run(tmp_path / "c", 0.7, seed=1, model__dim=16, model__backbone="moe"),
    ]
    labels = [group.label for group in compare(runs).groups]
    assert labels == ["reference", "model.dim=16", "model.backbone=moe, model.dim=16"]


def test_what_cannot_be_compared_is_refused(tmp_path):
    run = write_run(tmp_path / "a", 0.7, seed=1)
    with pytest.raises(UserError, match="no such run directory"):
        compare([run, tmp_path / "nowhere"])
    with pytest.raises(UserError, match="scored on 99 rows of 'test'"):
        compare([run, write_run(tmp_path / "b", 0.7, seed=2, rows=99)])
    with pytest.raises(UserError, match="the config and seed 1 of a again"):
        compare([run, write_run(tmp_path / "c", 0.7, seed=1)])
    (run / "eval.json").unlink()
    with pytest.raises(UserError, match=r"not evaluated; run launch/evaluate\.py"):
        compare([run])
    (tmp_path / "d").mkdir()
    with pytest.raises(UserError, match=r"no config\.yaml"):
        compare([tmp_path / "d"])


def test_the_verb_prints_and_writes_the_table(tmp_path):
    runs = [str(write_run(tmp_path / f"r{seed}", 0.7 + seed / 100, seed=seed)) for seed in (1, 2)]
    command = [sys.executable, str(ROOT / "launch" / "compare.py"), *runs, "--markdown", str(tmp_path / "t.md")]
    ended = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False, env={"COLUMNS": "140"})
    assert ended.returncode == 0, ended.stderr
    assert "0.7150 (0.7100 to 0.7200)" in ended.stdout
    assert "| reference | 2 | 0.7150" in (tmp_path / "t.md").read_text()
