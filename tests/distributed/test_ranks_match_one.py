"""N ranks make the steps that one process makes: losses, tables and dense weights, under every ZeRO stage."""

import json

import pytest
import torch

from rankmixer_dist.config import load_config
from rankmixer_dist.sparse.shard import LocalTables, RowWiseAdagradSettings, init_tables, table_key
from rankmixer_dist.sparse.tables import EmbeddingTables
from tests.distributed.outcomes import difference, distances, trained

STEPS = 50
# Ten times the largest differences seen after 50 steps, each relative to the largest value of its tensor's kind.
TOLERANCE = {"losses": 1.3e-6, "dense": 8e-7, "moments": 7e-6, "tables": 2.5e-6, "sums": 3.2e-6}

MIXED = ["sparse.sharding.user=table_wise", "sparse.sharding.video=row_wise", "sparse.sharding.tag=row_wise"]
MIXED += ["sparse.sharding.author=table_wise", "sparse.sharding.hour=table_wise"]
MIXED += ["sparse.sharding.segment=row_wise"]


@pytest.fixture(scope="module")
def alone(launch, small_config):
    """The reference: every seam's null twin, in one process without collectives."""
    case = {"reference": ["dense.engine=plain", "sparse.placement=local"]}
    return trained(launch, small_config, 1, case)["reference"]


@pytest.mark.parametrize("ranks", [1, 2, pytest.param(4, marks=pytest.mark.thorough)])
def test_every_rank_count_and_zero_stage_matches_the_reference(launch, small_config, alone, ranks):
    cases = {f"ranks{ranks}-zero{stage}": [f"dense.zero_stage={stage}"] for stage in (0, 1, 2)}
    cases[f"ranks{ranks}-mixed"] = ["dense.zero_stage=2", *MIXED]
    for name, run in trained(launch, small_config, ranks, cases).items():
        assert len(run["losses"]) == STEPS
        found = distances(run, alone)
        print(name, {part: f"{value:.1e}" for part, value in found.items()})
        assert all(found[part] <= TOLERANCE[part] for part in found), (name, found)


def test_the_reference_did_learn(small_config, alone):
    start = LocalTables(
        EmbeddingTables(load_config(small_config).features, device=torch.device("cpu")),
        settings=RowWiseAdagradSettings(lr=0.1, eps=1e-8),
    )
    init_tables(start, scale=load_config(small_config).sparse.init_scale, seed=1)
    moved = difference({table_key(shard.table): shard.weight for shard in start.local_shards()}, alone["tables"])
    assert moved > 0.3
    assert all(total.max() > 0 for total in alone["sums"].values())
    assert alone["losses"][-5:].mean() < alone["losses"][:5].mean()


@pytest.mark.thorough
def test_a_table_too_small_for_the_ranks_stays_whole_and_the_plan_says_so(small_config):
    runs = load_config(small_config).run_dir.parent
    segment = {
        ranks: next(table for table in json.loads((runs / f"ranks{ranks}-mixed" / "plan.json").read_text())["tables"]
                    if table["name"] == "segment")
        for ranks in (2, 4)
    }  # fmt: skip
    assert segment[2]["sharding"] == "row_wise"
    assert segment[4]["sharding"] == "table_wise"
    assert "5 rows in blocks of 2 leave none for the last of 4 ranks" in segment[4]["reason"]


def test_the_plan_places_tables_both_ways(small_config):
    plan = json.loads((load_config(small_config, ["name=ranks2-mixed"]).run_dir / "plan.json").read_text())
    kinds = {table["name"]: table["sharding"] for table in plan["tables"]}
    assert set(kinds.values()) == {"table_wise", "row_wise"}
    assert kinds["user"] == "table_wise"
    assert kinds["tag"] == "row_wise"
    assert all(table["reason"] for table in plan["tables"])
