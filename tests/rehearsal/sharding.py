"""TorchRec's sharded tables in one process that is one rank of many, and where tensors have no values."""

import dataclasses
from types import SimpleNamespace
from typing import Any

import fbgemm_gpu.split_table_batched_embeddings_ops_training as fbgemm
import torch
import torch.distributed as dist
import torchrec.distributed.batched_embedding_kernel as kernel
import torchrec.distributed.embeddingbag as bags
from torch import Tensor
from torch.distributed._shard.sharded_tensor import ShardedTensor
from torch.distributed._shard.sharding_spec import ChunkShardingSpec
from torchrec.distributed.types import ShardingEnv

from rankmixer_dist.sparse import placement, shard


def alone() -> None:
    """Lets a rank shard tables whose other ranks are not there."""
    ShardedTensor._init_from_local_shards = classmethod(_of_own_shards)


def joined() -> None:
    """Notes the group that was joined, since TorchRec makes tensors of it that have values."""
    env = ShardingEnv.from_process_group(dist.group.WORLD)
    shard.ShardingEnv = SimpleNamespace(from_process_group=lambda group: env)


def without_values() -> None:
    """Lets FBGEMM's modules be made of tensors without values: a rate is one, and parameters are cut the plain way."""
    fbgemm.SplitTableBatchedEmbeddingBagsCodegen.get_learning_rate = lambda module: 0.1
    kernel.TableBatchedEmbeddingSlice = _slice


def on_the_stand_in() -> None:
    """Lets sharded tables look up on the stand-in device, and train there.

    The planner, which knows no such device, counts as on CPUs. FBGEMM's fused lookup has no kernel for it: what takes
    its place has the output's shape, and a gradient. TorchRec's check of the first batch, which needs values, is off.
    """
    counted = placement._topology
    placement._topology = lambda ranks, room: counted(ranks, dataclasses.replace(room, device=torch.device("cpu")))
    fbgemm.invokers.lookup_rowwise_adagrad.invoke = _looked_up
    bags.validate_keyed_jagged_tensor = lambda *args: None


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


def _slice(
    data: Tensor, start_offset: int, end_offset: int, num_embeddings: int, embedding_dim: int
) -> torch.nn.Parameter:
    return torch.nn.Parameter(data[start_offset:end_offset].view(num_embeddings, embedding_dim))


def _looked_up(given: Any, *args: Any, **kwargs: Any) -> Tensor:
    pooled = given.pooling_mode != fbgemm.PoolingMode.NONE
    rows = (given.offsets.numel() - 1) // (given.D_offsets.numel() - 1) if pooled else given.indices.numel()
    found = torch.empty(rows, given.total_D if pooled else given.max_D, device=given.indices.device)
    return found + given.placeholder_autograd_tensor.sum()
