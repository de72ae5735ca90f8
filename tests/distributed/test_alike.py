"""A rank that begins otherwise than the others, or does not share their run directory, is named before it does harm."""

import json
import re
import shutil
import socket

import pytest
import yaml

from data_pipeline.manifest import MANIFEST_NAME
from rankmixer_dist.checkpoint.folder import checkpoints
from rankmixer_dist.config import load_config
from tests.conftest import ROOT
from tests.unit.checkpoint.conftest import about

HOST = re.escape(socket.gethostname())


@pytest.fixture(scope="module")
def told(launch, small_config, tmp_path_factory):
    """Case -> what each of three ranks was told; `end` is what the job said in the end."""
    folder = tmp_path_factory.mktemp("alike")
    config = load_config(small_config)
    features = config.features.model_dump(mode="json")
    features["tasks"] = dict(reversed(features["tasks"].items()))
    (folder / "reversed.yaml").write_text(yaml.safe_dump(features, sort_keys=False))
    for package in ("rankmixer_dist", "data_pipeline", "launch"):
        shutil.copytree(ROOT / package, folder / "code" / package, ignore=shutil.ignore_patterns("__pycache__"))
    with (folder / "code" / "rankmixer_dist" / "losses.py").open("a") as file:
        file.write("# another\n")
    shutil.copytree(config.data.prepared, folder / "moved")
    shutil.copytree(config.data.prepared, folder / "other")
    content = json.loads((folder / "other" / MANIFEST_NAME).read_text())
    (folder / "other" / MANIFEST_NAME).write_text(json.dumps(content))
    (folder / "runs").symlink_to(config.runs)
    old = folder / "old" / "alike-moved" / "checkpoints" / "step-00000001"
    old.mkdir(parents=True)
    about(1).model_copy(update={"config": config.model_dump(mode="json")}).write(old)
    cases = {
        "rate": {"rank": 1, "overrides": ["dense.lr=0.002"]},
        "seed": {"rank": 0, "overrides": ["seed=7"]},
        "features": {"rank": 2, "overrides": [f"features={folder / 'reversed.yaml'}"]},
        "data": {"rank": 1, "overrides": [f"data.prepared={folder / 'other'}"]},
        "no_data": {"rank": 2, "overrides": [f"data.prepared={folder / 'nowhere'}"]},
        "code": {"rank": 2, "overrides": ["dense.lr=0.002"], "code": str(folder / "code")},
        "runs": {"rank": 1, "overrides": [f"runs={folder / 'runs-of-one'}"]},
        "moved": {"rank": 1, "overrides": [f"data.prepared={folder / 'moved'}", "source.path=/nowhere"]},
        "goes_on": {"rank": 1, "overrides": [f"runs={folder / 'runs'}"], "name": "moved", "all": ["train.max_steps=2"]},
        "start": {
            "rank": 1,
            "overrides": [],
            "all": ["train.start_from.run=alike-moved/checkpoints/step-00000001"],
            "checkpoint": str(folder / "old"),
        },
        "end": {"rank": 1, "overrides": ["sparse.lr=0.3"]},
    }
    ended = launch.forked(
        "tests/distributed/alike_cases.py", str(small_config), str(folder), json.dumps(cases), ranks=3
    )
    assert ended.returncode == 2, ended.stderr[-3000:]
    found = {name: json.loads((folder / f"{name}.json").read_text()) for name in ("saver", *cases) if name != "end"}
    return found | {"end": [line for line in ended.stderr.splitlines() if line.startswith("error: ")]}


DIFFERENCES = {
    "rate": (1, "dense.lr", "0.002", "0.001", 0),
    "seed": (0, "seed", "7", "1", 1),
    "features": (2, "the order of features.tasks", r'\["like", .*', r'\["finish", .*', 0),
    "data": (1, "data.prepared", '"[0-9a-f]{32}"', '"[0-9a-f]{32}"', 0),
    "no_data": (2, "data.prepared", '".*manifest.json: No such file or directory"', '"[0-9a-f]{32}"', 0),
    "code": (2, "code.rankmixer_dist/losses.py", '"[0-9a-f]{32}"', '"[0-9a-f]{32}"', 0),
}


@pytest.mark.parametrize("name", DIFFERENCES)
def test_the_odd_rank_is_named_with_the_key_and_both_values(told, name):
    odd, key, value, other, usual = DIFFERENCES[name]
    (line,) = set(told[name])
    assert re.fullmatch(
        rf"ranks differ: {re.escape(key)} is {value} on rank {odd}, host {HOST}, and {other} on rank {usual}, host "
        rf"{HOST}; start all ranks with the same config, prepared data and code",
        line,
    ), line


def test_it_ends_the_job_with_one_line(told):
    (line,) = told["end"]
    assert line.startswith("error: ranks differ: sparse.lr is 0.3 on rank 1, ")


def test_a_run_directory_of_its_own_is_refused(told, small_config):
    (line,) = set(told["runs"])
    assert re.match(rf"runs: rank 1 on host {HOST} does not see in \S+/runs-of-one/\S+ what rank 0 on host", line)
    run_dir = load_config(small_config, ["name=alike-runs"]).run_dir
    assert [path.name for path in run_dir.iterdir()] == ["lock"]


def test_the_same_data_may_lie_elsewhere(told):
    assert set(told["moved"]) == {"nothing"}


def test_a_host_may_call_the_runs_otherwise(told, small_config):
    assert set(told["goes_on"]) == {"nothing"}
    run_dir = load_config(small_config, ["name=alike-moved"]).run_dir
    assert [path.name for path in checkpoints(run_dir)] == ["step-00000001", "step-00000002"]


def test_a_host_that_has_another_checkpoint_to_start_from_is_named(told):
    (line,) = set(told["start"])
    assert re.match(rf'ranks differ: train.start_from.run is "\w+" on rank 1, host {HOST}, and ', line), line


def test_a_save_that_rank_0_does_not_see_is_not_sealed_and_nothing_is_pruned(told):
    unseen = r"step-00000002: not saved, .*: rank 1 wrote \S+ bytes into tensors/__1_0.distcp, but rank 0 sees no"
    for line, left in told["saver"]:
        assert re.search(unseen, line)
        assert left == ["step-00000001"]
