"""N ranks make the steps that one process makes: losses, tables and dense weights, under every ZeRO stage."""

import json
from pathlib import Path

import pytest
import torch

from rankmixer_dist.checkpoint.folder import checkpoints
from rankmixer_dist.checkpoint.storage import read_whole
from rankmixer_dist.config import load_config
from rankmixer_dist.sparse.shard import LocalTables, RowWiseAdagradSettings, init_tables, table_key
from rankmixer_dist.sparse.tables import EmbeddingTables

STEPS = 50
# Ten times the largest differences seen after 50 steps, each relative to the largest value of its tensor's kind.
TOLERANCE = {"losses": 1.3e-6, "dense": 8e-7, "moments": 7e-6, "tables": 2.5e-6, "sums": 3.2e-6}

MIXED = ["sparse.sharding.user=table_wise", "sparse.sharding.video=row_wise", "sparse.sharding.tag=row_wise"]
MIXED += ["sparse.sharding.author=table_wise", "sparse.sharding.hour=table_wise"]


def trained(launch, small_config: Path, ranks: int, cases: dict[str, list[str]]) -> dict[str, dict]:
    """Losses per step and final tensors of each case."""
    overrides = [[f"name={name}", *extra] for name, extra in cases.items()]
    ended = launch.torchrun("tests/distributed/train_cases.py", str(small_config), json.dumps(overrides), ranks=ranks)
    assert ended.returncode == 0, ended.stderr[-3000:]
    return {name: outcome(small_config, [f"name={name}", *extra]) for name, extra in cases.items()}


def outcome(small_config: Path, overrides: list[str]) -> dict:
    config = load_config(small_config, overrides)
    lines = [json.loads(line) for line in (config.run_dir / "metrics.jsonl").read_text().splitlines()]
    tensors = read_whole(checkpoints(config.run_dir)[-1] / "tensors")

    def of(folder: str, is_weight: bool) -> dict[str, torch.Tensor]:
        keys = [key for key in tensors if key.startswith(folder) and key.endswith(".weight") == is_weight]
        return {key: tensors[key] for key in keys}

    return {
        "losses": torch.tensor([line["loss"] for line in lines], dtype=torch.float64),
        "dense": of("dense/", True),
        "moments": of("dense/", False),
        "tables": of("tables/", True),
        "sums": of("tables/", False),
    }


@pytest.fixture(scope="module")
def alone(launch, small_config):
    """The reference: every seam's null twin, in one process without collectives."""
    case = {"reference": ["dense.engine=plain", "sparse.placement=local"]}
    return trained(launch, small_config, 1, case)["reference"]


def difference(found: dict[str, torch.Tensor], expected: dict[str, torch.Tensor]) -> float:
    """Largest absolute difference over all tensors, as a share of the largest absolute value."""
    assert found.keys() == expected.keys()
    largest = max(float(tensor.abs().max()) for tensor in expected.values())
    return max(float((found[name] - expected[name]).abs().max()) for name in expected) / largest


@pytest.mark.parametrize("ranks", [1, 2, 4])
def test_every_rank_count_and_zero_stage_matches_the_reference(launch, small_config, alone, ranks):
    cases = {f"ranks{ranks}-zero{stage}": [f"dense.zero_stage={stage}"] for stage in (0, 1, 2)}
    cases[f"ranks{ranks}-mixed"] = ["dense.zero_stage=2", *MIXED]
    for name, run in trained(launch, small_config, ranks, cases).items():
        assert len(run["losses"]) == STEPS
        found = {part: difference(run[part], alone[part]) for part in ("dense", "moments", "tables", "sums")}
        found["losses"] = float(((run["losses"] - alone["losses"]) / alone["losses"]).abs().max())
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


def test_the_plan_places_tables_both_ways(small_config):
    plan = json.loads((load_config(small_config, ["name=ranks2-mixed"]).run_dir / "plan.json").read_text())
    kinds = {table["name"]: table["sharding"] for table in plan["tables"]}
    assert set(kinds.values()) == {"table_wise", "row_wise"}
    assert kinds["user"] == "table_wise"
    assert kinds["tag"] == "row_wise"
    assert all(table["reason"] for table in plan["tables"])
