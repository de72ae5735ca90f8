"""Run as a process: shards a config's tables as several ranks of many, one after the other, without the others.

Takes device kind, world size, a JSON list of ranks (rank 0, which plans, first) and a JSON list of [config, overrides];
prints a line of JSON a rank and case. On `cuda` tensors have no values, and FBGEMM's and TorchRec's CUDA branches run.
"""

import json
import os
import sys
import traceback
from contextlib import nullcontext
from pathlib import Path
from types import SimpleNamespace
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[2]))
os.environ["DS_ACCELERATOR"] = "cpu"

import torch
import torch.distributed as dist
from torch._subclasses import fake_tensor

from rankmixer_dist.config import load_config
from rankmixer_dist.parallel.topology import Topology
from rankmixer_dist.sparse import shard
from rankmixer_dist.train import build
from tests.rehearsal import ranks, sharding

NAME, MEMORY = "NVIDIA H100 80GB HBM3", 80 << 30


def main(kind: str, world_size: int, members: list[int], cases: list[tuple[str, list[str]]]) -> None:
    """Prints what each rank holds."""
    sharding.alone()
    if kind == "cuda":
        _without_driver()
    for file, overrides in cases:
        for rank in members:
            ranks.join(rank, world_size, kind)
            found: dict[str, Any] = {"rank": rank, "file": file, "error": ""}
            try:
                found |= held(file, overrides, rank, kind)
            except Exception:
                found["error"] = traceback.format_exc()
            print(json.dumps(found), flush=True)
            dist.destroy_process_group()


def held(file: str, overrides: list[str], rank: int, kind: str) -> dict[str, Any]:
    """This rank's pieces of every table, and where they lie."""
    world_size, local_rank = dist.get_world_size(), rank % ranks.HOST_RANKS
    device = torch.device("cuda", local_rank) if kind == "cuda" else torch.device("cpu")
    topology = Topology(rank, world_size, local_rank, ranks.HOST_RANKS, device, hosts=("host",) * world_size)
    sharding.joined()
    with fake_tensor.FakeTensorMode(allow_non_fake_inputs=True) if kind == "cuda" else nullcontext():
        tables, plan = build.build_tables(load_config(file, overrides), topology, rows_per_rank=32)
        tables.set_lr(0.3)
        pieces = [
            {"key": piece.key, "shape": piece.shape, "offsets": piece.offsets, "size": list(piece.tensor.shape)}
            | {"device": str(piece.tensor.device)}
            for piece in shard.table_pieces(tables)
        ]
    return {"pieces": pieces, "plan": {each["name"]: each["sharding"] for each in plan["tables"]}}


def _without_driver() -> None:
    """Lets tensors on `cuda` be made that have no values, where there is no GPU."""
    fake_tensor.init_gpu_context = lambda *args, **kwargs: None
    torch.cuda.get_device_name = lambda device: NAME
    torch.cuda.get_device_properties = lambda device: SimpleNamespace(total_memory=MEMORY)
    sharding.without_values()


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]), json.loads(sys.argv[3]), json.loads(sys.argv[4]))
    sys.stdout.flush()
    os._exit(0)  # fake groups have nothing to take down
