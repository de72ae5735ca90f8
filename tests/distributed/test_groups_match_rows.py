"""Rows that share a user side train to the weights that rows alone train to, on any number of ranks."""

import json

import pytest
import yaml

from data_pipeline.preprocess import preprocess
from data_pipeline.reading import find_prepared
from rankmixer_dist.config import load_config
from rankmixer_dist.models.counted import count
from rankmixer_dist.train.build import weightless_model
from tests.distributed.outcomes import distances, trained
from tests.distributed.test_ranks_match_one import MIXED, STEPS, TOLERANCE

SIDE = ("user", "watched", "liked_tags")


@pytest.fixture(scope="module")
def grouped_config(small_config, tmp_path_factory):
    """The YAML file of the small run whose rows stand by user and day."""
    folder = tmp_path_factory.mktemp("grouped")
    config = yaml.safe_load(small_config.read_text())
    config["data"] |= {"prepared": str(folder / "prepared"), "group": {"by": "user_id", "window": "1d"}}
    config["runs"] = str(folder / "runs")
    path = folder / "grouped.yaml"
    path.write_text(yaml.safe_dump(config))
    assert load_config(path).features.user_side() == SIDE
    preprocess(load_config(path), progress=False)
    return path


@pytest.fixture(scope="module")
def alone(launch, grouped_config):
    """Each row with its own user side, in one process without collectives."""
    case = {"alone": ["dense.engine=plain", "sparse.placement=local", "loader.share=false"]}
    return trained(launch, grouped_config, 1, case)["alone"]


@pytest.mark.parametrize("ranks", [1, 2])
def test_sharing_changes_no_step(launch, grouped_config, alone, ranks):
    cases = {f"shared{ranks}": [], f"shared{ranks}-mixed": MIXED}
    for name, run in trained(launch, grouped_config, ranks, cases).items():
        assert len(run["losses"]) == STEPS
        found = distances(run, alone)
        print(name, {part: f"{value:.1e}" for part, value in found.items()})
        assert all(found[part] <= TOLERANCE[part] for part in found), (name, found)
    plan = json.loads((load_config(grouped_config, [f"name=shared{ranks}"]).run_dir / "plan.json").read_text())
    (user,) = (table for table in plan["tables"] if table["name"] == "user")
    assert 0 < user["ids_per_row"][0] < 0.5
    config = load_config(grouped_config)
    manifest, model = find_prepared(config, ["train"]), weightless_model(config)
    read, written = (count(model, manifest.ids_of_rows(shared=shared)) for shared in (False, True))
    assert plan["dense"]["flops_per_row_train"] == read.flops_per_row_train > written.flops_per_row_train
