"""A run over several splits in turn: each row once, a checkpoint at each end, and the same after a stop."""

import itertools
import json

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
import yaml

from data_pipeline.manifest import read_manifest
from data_pipeline.preprocess import preprocess
from rankmixer_dist.checkpoint.about import read_about
from rankmixer_dist.checkpoint.folder import checkpoints, step_of
from rankmixer_dist.checkpoint.storage import read_whole
from rankmixer_dist.config import load_config
from rankmixer_dist.train.row_audit import FOLDER_NAME

WINDOWS = {"early": (1, 3), "middle": (3, 5), "late": (5, 7)}
STOP = 10
"""A step in the middle of the second window."""


@pytest.fixture(scope="module")
def windows_config(small_config, tmp_path_factory):
    """The YAML file of a run over three windows in turn, which are prepared."""
    folder = tmp_path_factory.mktemp("windows")
    config = yaml.safe_load(small_config.read_text())
    config["runs"] = str(folder / "runs")
    test = config["data"]["splits"].pop("test")
    config["data"] |= {
        "prepared": str(folder / "prepared"),
        "splits": {
            name: {"start": f"2026-01-{first:02}T00:00:00Z", "end": f"2026-01-{end:02}T00:00:00Z"}
            for name, (first, end) in WINDOWS.items()
        }
        | {"test": test},
        "statistics_of": "early",
    }
    config["train"] = {"split": [*WINDOWS], "log_every": 1, "audit_rows": True}
    config["checkpoint"] = {"keep": 9}
    path = folder / "windows.yaml"
    path.write_text(yaml.safe_dump(config))
    preprocess(load_config(path), progress=False)
    return path


@pytest.fixture(scope="module")
def trained(launch, windows_config):
    """The directories of a run that never stopped, of one that stopped and went on, and of one on an early window that
    began with the weights of another on a late one, and was started twice."""
    cases = [["name=whole"], ["name=stopped", f"train.max_steps={STOP}"], ["name=stopped"]]
    cases.append(["name=late", "train.split=late", "train.max_steps=2"])
    of_late = load_config(windows_config, cases[-1]).run_dir
    for steps in (1, 2):
        cases.append(["name=back", "train.split=early", f"train.max_steps={steps}", f"train.start_from.run={of_late}"])
    ended = launch.forked("tests/distributed/train_cases.py", str(windows_config), json.dumps(cases), ranks=2)
    assert ended.returncode == 0, ended.stderr[-3000:]
    assert ended.stdout.count("goes on from") == 2
    return [load_config(windows_config, [f"name={name}"]).run_dir for name in ("whole", "stopped", "back")]


@pytest.fixture(scope="module")
def ends(windows_config):
    """The step at which each window ends, by its rows."""
    config = load_config(windows_config)
    manifest = read_manifest(config.data.prepared, config.features)
    steps = [-(-manifest.rows(name) // config.loader.batch_size) for name in WINDOWS]
    assert any(manifest.rows(name) % config.loader.batch_size for name in WINDOWS), "a tail was to be padded"
    return list(itertools.accumulate(steps))


def test_the_end_of_each_window_is_saved_and_says_what_was_trained_on(windows_config, trained, ends):
    config = load_config(windows_config)
    saved = [read_about(path) for path in checkpoints(trained[0])]
    assert [about.step for about in saved] == ends
    assert [about.position.epoch for about in saved] == [0, 1, 2]
    expected = [config.data.splits[name].to_ms()[1] for name in WINDOWS]
    assert [about.trained_until for about in saved] == expected
    middle = next(path for path in checkpoints(trained[1]) if step_of(path) == STOP)
    assert ends[0] < STOP < ends[1]
    assert read_about(middle).trained_until == expected[1]


def test_each_row_is_trained_on_once_and_in_its_window(windows_config, trained, ends):
    config = load_config(windows_config)
    manifest = read_manifest(config.data.prepared, config.features)
    for run_dir in trained[:2]:
        first = 0
        for name, end in zip(WINDOWS, ends, strict=True):
            paths = [config.data.prepared / shard.path for shard in manifest.splits[name]]
            rows = np.concatenate([pq.read_table(path, columns=["row_id"])["row_id"].to_numpy() for path in paths])
            parts = [*(run_dir / FOLDER_NAME).glob("step-*.npy")]
            found = [np.load(path) for path in parts if first < int(path.name[5:13]) <= end]
            assert np.array_equal(np.sort(np.concatenate(found)), np.sort(rows))
            first = end


def test_a_run_that_stops_in_a_window_goes_on_exactly(trained):
    whole, stopped = (
        [json.loads(line) for line in (run_dir / "metrics.jsonl").read_text().splitlines()] for run_dir in trained[:2]
    )
    for figure in ("step", "epoch", "rows", "loss", "lr"):
        assert [line[figure] for line in whole] == [line[figure] for line in stopped]
    expected, found = (read_whole(checkpoints(run_dir)[-1] / "tensors") for run_dir in trained[:2])
    assert expected.keys() == found.keys()
    assert all(torch.equal(found[key], tensor) for key, tensor in expected.items())


def test_weights_that_saw_what_came_later_say_so(windows_config, trained):
    config = load_config(windows_config)
    abouts = [read_about(path) for path in checkpoints(trained[2])]
    assert [about.step for about in abouts] == [1, 2]
    assert {about.trained_until for about in abouts} == {config.data.splits["late"].to_ms()[1]}
