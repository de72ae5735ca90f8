"""A small log of several days, each a split of its own."""

from pathlib import Path

import pytest
import yaml

from data_pipeline.preprocess import preprocess
from rankmixer_dist.config import load_config

DAYS = ("train", "day2", "day3", "day4")
"""Splits that are trained on; `test` is the day after."""


@pytest.fixture(scope="session")
def days_config(small_config: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The YAML file of a run that trains on four days in turn; 1,800 rows of five days are prepared, 128 a shard."""
    folder = tmp_path_factory.mktemp("days")
    config = yaml.safe_load(small_config.read_text())
    config |= {"name": "days", "runs": str(folder / "runs")}
    config["source"] |= {"path": str(folder / "raw"), "rows": 1800, "days": 5}
    days = [f"2026-01-0{day}T00:00:00Z" for day in range(1, 7)]
    splits = {name: {"start": days[day], "end": days[day + 1]} for day, name in enumerate((*DAYS, "test"))}
    config["data"] |= {"prepared": str(folder / "prepared"), "splits": splits, "row_group_rows": 32, "shard_rows": 128}
    config["train"] = {"split": list(DAYS), "log_every": 1}
    config["eval"] = {"batch_size": 64}
    config["stream"] = {"start": days[1], "batch_size": 64, "poll_s": 0.05, "stop_after_idle_s": 2.0}
    path = folder / "days.yaml"
    path.write_text(yaml.safe_dump(config))
    preprocess(load_config(path), progress=False)
    return path
