"""Places the tables on the ranks: a plan with its reasons, the sharded module, its fused optimizer and its shards."""

import logging
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import torch
import torch.distributed as dist
from fbgemm_gpu.split_embedding_configs import EmbOptimType
from torch import Tensor, nn
from torch.distributed._shard.sharded_tensor import ShardedTensor
from torch.distributed.optim import _apply_optimizer_in_backward as apply_optimizer_in_backward
from torchrec.distributed.embedding import EmbeddingCollectionSharder
from torchrec.distributed.embeddingbag import EmbeddingBagCollectionSharder
from torchrec.distributed.model_parallel import DistributedModelParallel
from torchrec.distributed.planner import EmbeddingShardingPlanner, ParameterConstraints, Topology
from torchrec.distributed.planner.enumerators import EmbeddingEnumerator
from torchrec.distributed.planner.storage_reservations import FixedPercentageStorageReservation
from torchrec.distributed.planner.types import ShardingOption
from torchrec.distributed.types import BoundsCheckMode, ModuleSharder, ShardingEnv, ShardingType
from torchrec.optim.rowwise_adagrad import RowWiseAdagrad

from rankmixer_dist.batch import JaggedIds
from rankmixer_dist.pieces import Piece
from rankmixer_dist.sparse.init import fill_uniform_
from rankmixer_dist.sparse.tables import Embeddings, EmbeddingTables

# The planner warns of choices that are made on purpose here, and fx of a flag that TorchRec still reads.
logging.getLogger("torchrec").setLevel(logging.ERROR)
logging.getLogger("torch.fx._symbolic_trace").setLevel(logging.ERROR)

SHARDING_TYPES = (ShardingType.TABLE_WISE.value, ShardingType.ROW_WISE.value)


@dataclass(frozen=True)
class RowWiseAdagradSettings:
    """One accumulator a row: the mean of its gradient's squares. Updates happen inside backward."""

    lr: float
    eps: float


class Tables(Protocol):
    """The seam between the dense model and wherever the tables lie."""

    @property
    def module(self) -> nn.Module:
        """The torch module that holds the tables."""
        ...

    def __call__(self, ids: JaggedIds) -> Embeddings: ...

    def set_lr(self, lr: float) -> None:
        """Learning rate of the updates that the next backward makes."""
        ...

    def local_shards(self) -> Iterator["Shard"]:
        """This rank's pieces of every table."""
        ...


@dataclass(frozen=True)
class Shard:
    """Rows `first_row`.. of `table` on this rank: `weight` [rows, dim] and its optimizer's `sum` [rows].

    `table_rows`: of the whole table.
    """

    table: str
    table_rows: int
    first_row: int
    weight: Tensor
    sum: Tensor


class LocalTables:
    """The null twin: one process, unsharded TorchRec modules, the same optimizer from torchrec.optim."""

    def __init__(self, module: EmbeddingTables, *, settings: RowWiseAdagradSettings) -> None:
        self.module = module
        kwargs = {"lr": settings.lr, "eps": settings.eps}
        apply_optimizer_in_backward(RowWiseAdagrad, module.parameters(), kwargs)

    def __call__(self, ids: JaggedIds) -> Embeddings:
        return self.module(ids)

    def _optimizers(self) -> Iterator[tuple[str, Tensor, torch.optim.Optimizer]]:
        for name, parameter in self.module.named_parameters():
            yield name.split(".")[-2], parameter, parameter._in_backward_optimizers[0]  # type: ignore[attr-defined]

    def set_lr(self, lr: float) -> None:
        for _, _, optimizer in self._optimizers():
            optimizer.param_groups[0]["lr"] = lr

    def local_shards(self) -> Iterator[Shard]:
        for table, parameter, optimizer in self._optimizers():
            total = optimizer.state[parameter]["sum"]
            weight = parameter.detach()
            yield Shard(table=table, table_rows=len(weight), first_row=0, weight=weight, sum=total.view(-1))


class ShardedTables:
    """TorchRec's DistributedModelParallel over all ranks, FBGEMM's fused row-wise Adagrad inside."""

    def __init__(self, module: DistributedModelParallel) -> None:
        self.module = module

    def __call__(self, ids: JaggedIds) -> Embeddings:
        return self.module(ids)

    def set_lr(self, lr: float) -> None:
        optimizer = self.module.fused_optimizer
        for group in optimizer.param_groups:
            group["lr"] = lr
        optimizer.step()  # the update itself is in backward; this hands the rate to the kernels

    def local_shards(self) -> Iterator[Shard]:
        tensors = self._tensors()
        for table in {name.rpartition(".")[0]: None for name in tensors}:
            weights = _pieces(tensors[f"{table}.weight"])
            # A table-wise table that lies on another rank has a weight without pieces here, and no accumulator.
            sums = _pieces(tensors[f"{table}.sum"]) if weights else []
            for piece, total in zip(weights, sums, strict=True):
                assert piece.first_row == total.first_row
                yield Shard(
                    table=table,
                    table_rows=tensors[f"{table}.weight"].size(0),
                    first_row=piece.first_row,
                    weight=piece.tensor,
                    sum=total.tensor.view(-1),
                )

    def _tensors(self) -> dict[str, Any]:
        """`<table>.weight` and `<table>.sum` of every table, as TorchRec holds them."""
        tensors: dict[str, Any] = {}
        for name, weight in self.module.state_dict().items():
            tensors[f"{name.split('.')[-2]}.weight"] = weight
        for entry in self.module.fused_optimizer.state_dict()["state"].values():
            for key, value in entry.items():
                if key.endswith(".momentum1"):
                    tensors[key.removesuffix(".momentum1") + ".sum"] = value
        return tensors


@dataclass(frozen=True)
class _Piece:
    first_row: int
    tensor: Tensor


def _pieces(value: Any) -> list[_Piece]:
    assert isinstance(value, ShardedTensor), f"expected a sharded tensor, got {type(value).__name__}"
    return [_Piece(shard.metadata.shard_offsets[0], shard.tensor) for shard in value.local_shards()]


class _BagSharder(EmbeddingBagCollectionSharder):
    """Offers row-wise sharding on CPU too: gloo has the reduce-scatter that it needs."""

    def sharding_types(self, compute_device_type: str) -> list[str]:
        return list(SHARDING_TYPES)


class _RowSharder(EmbeddingCollectionSharder):
    def sharding_types(self, compute_device_type: str) -> list[str]:
        return list(SHARDING_TYPES)


def shard_tables(
    module: EmbeddingTables,
    *,
    device: torch.device,
    settings: RowWiseAdagradSettings,
    fixed: Mapping[str, str],
    rows_per_rank: int,
    memory_bytes: int,
    local_world_size: int,
) -> tuple[ShardedTables, list[dict[str, Any]]]:
    """Plans and shards `module`, which lies on the meta device, over all ranks of the default group.

    Args:
        fixed: table -> sharding type, for tables that the planner must not decide.
        rows_per_rank: rows of a rank's batch, for the planner's estimates.
        memory_bytes: memory a rank may plan with.

    Returns:
        The sharded tables, and the plan as `plan.json` tells it: one entry a table with its reason (rank 0; the
        others get an empty list).
    """
    constraints = {
        table: ParameterConstraints(
            sharding_types=[fixed[table]] if table in fixed else list(SHARDING_TYPES),
            compute_kernels=["fused"],
            bounds_check_mode=BoundsCheckMode.FATAL,
        )
        for table in module.schema.tables
    }
    on_gpu = device.type == "cuda"
    topology = Topology(
        world_size=dist.get_world_size(),
        local_world_size=local_world_size,
        compute_device=device.type,
        hbm_cap=memory_bytes if on_gpu else 0,
        ddr_cap=None if on_gpu else memory_bytes,
    )
    fused = {"optimizer": EmbOptimType.EXACT_ROWWISE_ADAGRAD, "learning_rate": settings.lr, "eps": settings.eps}
    sharders: list[ModuleSharder[Any]] = [_BagSharder(fused_params=fused), _RowSharder(fused_params=fused)]
    chosen: list[ShardingOption] = []
    planner = EmbeddingShardingPlanner(
        topology=topology,
        batch_size=rows_per_rank,
        constraints=constraints,
        storage_reservation=FixedPercentageStorageReservation(percentage=0.15),
        debug=False,
        stats=[],
        callbacks=[lambda options: chosen.extend(options) or options],  # type: ignore[func-returns-value]
    )
    alternatives: list[ShardingOption] = []
    if dist.get_rank() == 0:
        enumerator = EmbeddingEnumerator(topology=topology, batch_size=rows_per_rank, constraints=constraints)
        alternatives = enumerator.enumerate(module, sharders)
    plan = planner.collective_plan(module, sharders, dist.group.WORLD)
    sharded = DistributedModelParallel(
        module,
        env=ShardingEnv.from_process_group(dist.group.WORLD),
        device=device,
        plan=plan,
        sharders=sharders,
        init_data_parallel=False,
    )
    explained = [_explain(module, option, alternatives, fixed) for option in chosen]
    return ShardedTables(sharded), explained


def _explain(
    module: EmbeddingTables, option: ShardingOption, alternatives: list[ShardingOption], fixed: Mapping[str, str]
) -> dict[str, Any]:
    others = [o for o in alternatives if o.name == option.name and o.sharding_type != option.sharding_type]
    estimate = f"estimated {option.total_perf * 1e3:.3g} us a step"
    if option.name in fixed:
        reason = f"fixed by sparse.sharding; {estimate}"
    elif dist.get_world_size() == 1:
        reason = f"one rank; {estimate}"
    else:
        rest = ", ".join(f"{o.sharding_type} {o.total_perf * 1e3:.3g} us" for o in others)
        reason = f"planner's best for the slowest rank and memory; {estimate}" + (f" (instead: {rest})" if rest else "")
    rows, dim = option.tensor.shape
    bytes_per_rank = [0] * dist.get_world_size()
    for shard in option.shards:
        shard_rows, shard_dim = shard.size
        bytes_per_rank[shard.rank] += shard_rows * (shard_dim + 1) * 4  # fp32 weights and one accumulator a row
    return {
        "name": option.name,
        "rows": rows,
        "dim": dim,
        "module": "sequences" if option.name in module.schema.unpooled_tables() else "bags",
        "features": [n for n, f in module.schema.features.items() if getattr(f, "table", None) == option.name],
        "sharding": option.sharding_type,
        "compute_kernel": option.compute_kernel,
        "ranks": [shard.rank for shard in option.shards],
        "bytes": sum(bytes_per_rank),
        "bytes_per_rank": bytes_per_rank,
        "reason": reason,
    }


def table_key(table: str, kind: str = "weight") -> str:
    """Name of a table's weights, or of its optimizer's `sum`, in a checkpoint."""
    return f"tables/{table}.{kind}"


def table_pieces(tables: Tables, kinds: Sequence[str] = ("weight", "sum")) -> list[Piece]:
    """This rank's part of every table, of the given kinds."""
    pieces = []
    for shard in tables.local_shards():
        for kind in kinds:
            part: Tensor = getattr(shard, kind)
            shape, offsets = (shard.table_rows, *part.shape[1:]), (shard.first_row, *(0 for _ in part.shape[1:]))
            pieces.append(Piece(table_key(shard.table, kind), shape, offsets, part))
    return pieces


def init_tables(tables: Tables, *, scale: float, seed: int) -> None:
    """Starts every table from `seed`, the same values wherever its rows lie (`sparse.init`)."""
    for shard in tables.local_shards():
        fill_uniform_(shard.weight, scale=scale, seed=seed, table=shard.table, first_row=shard.first_row)
