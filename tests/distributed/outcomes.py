"""What runs of the small config ended with, and how far two of them are apart."""

import json
from pathlib import Path

import torch

from rankmixer_dist.checkpoint.folder import checkpoints
from rankmixer_dist.checkpoint.storage import read_whole
from rankmixer_dist.config import load_config
from tests.distributed.train_cases import NEAREST_GATE


def trained(launch, small_config: Path, ranks: int, cases: dict[str, list[str]]) -> dict[str, dict]:
    """Losses per step and final tensors of each case."""
    overrides = [[f"name={name}", *extra] for name, extra in cases.items()]
    ended = launch.forked("tests/distributed/train_cases.py", str(small_config), json.dumps(overrides), ranks=ranks)
    assert ended.returncode == 0, ended.stderr[-3000:]
    return {name: outcome(small_config, [f"name={name}", *extra]) for name, extra in cases.items()}


def outcome(small_config: Path, overrides: list[str]) -> dict:
    config = load_config(small_config, overrides)
    lines = [json.loads(line) for line in (config.run_dir / "metrics.jsonl").read_text().splitlines()]
    tensors = read_whole(checkpoints(config.run_dir)[-1] / "tensors")

    nearest = config.run_dir / NEAREST_GATE

    def of(folder: str, is_weight: bool) -> dict[str, torch.Tensor]:
        keys = [key for key in tensors if key.startswith(folder) and key.endswith(".weight") == is_weight]
        return {key: tensors[key] for key in keys}

    return {
        "lines": lines,
        "nearest_gate": json.loads(nearest.read_text()) if nearest.exists() else None,
        "other": {key: tensor for key, tensor in tensors.items() if key.startswith("routing/")},
        "losses": torch.tensor([line["loss"] for line in lines], dtype=torch.float64),
        "dense": of("dense/", True),
        "moments": of("dense/", False),
        "tables": of("tables/", True),
        "sums": of("tables/", False),
    }


def difference(found: dict[str, torch.Tensor], expected: dict[str, torch.Tensor]) -> float:
    """Largest absolute difference over all tensors, as a share of the largest absolute value."""
    assert found.keys() == expected.keys()
    largest = max(float(tensor.abs().max()) for tensor in expected.values())
    return max(float((found[name] - expected[name]).abs().max()) for name in expected) / largest


def distances(run: dict, reference: dict) -> dict[str, float]:
    """The largest difference of each kind, the losses' relative to each loss."""
    found = {part: difference(run[part], reference[part]) for part in ("dense", "moments", "tables", "sums")}
    return found | {"losses": float(((run["losses"] - reference["losses"]) / reference["losses"]).abs().max())}
