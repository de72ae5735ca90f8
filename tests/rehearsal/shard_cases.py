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
from torch.distributed._shard.sharded_tensor import ShardedTensor
from torch.distributed._shard.sharding_spec import ChunkShardingSpec
from torchrec.distributed.types import ShardingEnv

from rankmixer_dist.config import load_config
from rankmixer_dist.parallel.topology import Topology
from rankmixer_dist.sparse import shard
from rankmixer_dist.train import build
from tests.rehearsal import ranks

NAME, MEMORY = "NVIDIA H100 80GB HBM3", 80 << 30


def main(kind: str, world_size: int, members: list[int], cases: list[tuple[str, list[str]]]) -> None:
    """Prints what each rank holds."""
    ShardedTensor._init_from_local_shards = classmethod(_of_own_shards)
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
    env = ShardingEnv.from_process_group(dist.group.WORLD)  # which makes tensors that have values
    shard.ShardingEnv = SimpleNamespace(from_process_group=lambda group: env)
    with fake_tensor.FakeTensorMode(allow_non_fake_inputs=True) if kind == "cuda" else nullcontext():
        tables, plan = build.build_tables(load_config(file, overrides), topology, rows_per_rank=32)
        tables.set_lr(0.3)
        pieces = [
            {"key": piece.key, "shape": piece.shape, "offsets": piece.offsets, "size": list(piece.tensor.shape)}
            | {"device": str(piece.tensor.device)}
            for piece in shard.table_pieces(tables)
        ]
    return {"pieces": pieces, "plan": {each["name"]: each["sharding"] for each in plan["tables"]}}


def _of_own_shards(cls: Any, shards: Any, *size: Any, process_group: Any = None, **kwargs: Any) -> ShardedTensor:
    """What the ranks would agree on about the whole is not asked: the others are not there."""
    whole = size[0] if len(size) == 1 and not isinstance(size[0], int) else size
    places = [f"rank:{rank}/cpu" for rank in range(dist.get_world_size())]
    tensor = ShardedTensor.__new__(
        ShardedTensor,
        ChunkShardingSpec(dim=0, placements=places),
        *whole,
        dtype=torch.float32,
        layout=torch.strided,
        requires_grad=False,
        pin_memory=False,
    )
    tensor._local_shards, tensor._process_group = shards, dist.group.WORLD
    tensor._init_rrefs, tensor._sharded_tensor_id, tensor._remote_shards = False, None, {}
    return tensor


def _without_driver() -> None:
    """Lets tensors on `cuda` be made that have no values, where there is no GPU."""
    import fbgemm_gpu.split_table_batched_embeddings_ops_training as fbgemm
    import torchrec.distributed.batched_embedding_kernel as kernel

    fake_tensor.init_gpu_context = lambda *args, **kwargs: None
    torch.cuda.get_device_name = lambda device: NAME
    torch.cuda.get_device_properties = lambda device: SimpleNamespace(total_memory=MEMORY)
    # A rate is a value, and a slice of parameters without values is made the plain way.
    fbgemm.SplitTableBatchedEmbeddingBagsCodegen.get_learning_rate = lambda module: 0.1
    kernel.TableBatchedEmbeddingSlice = _slice


def _slice(
    data: torch.Tensor, start_offset: int, end_offset: int, num_embeddings: int, embedding_dim: int
) -> torch.nn.Parameter:
    return torch.nn.Parameter(data[start_offset:end_offset].view(num_embeddings, embedding_dim))


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]), json.loads(sys.argv[3]), json.loads(sys.argv[4]))
    sys.stdout.flush()
    os._exit(0)  # fake groups have nothing to take down
