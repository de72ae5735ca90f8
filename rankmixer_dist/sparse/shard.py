"""The tables of all ranks: the sharded module, its fused optimizer and its shards, and their null twin."""

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
from torchrec.distributed.model_parallel import DistributedModelParallel
from torchrec.distributed.types import ShardingEnv
from torchrec.optim.rowwise_adagrad import RowWiseAdagrad

from rankmixer_dist.ahead import ahead_stream
from rankmixer_dist.batch import JaggedIds
from rankmixer_dist.embedded import Embedded
from rankmixer_dist.pieces import Piece
from rankmixer_dist.sparse.init import fill_uniform_
from rankmixer_dist.sparse.pending import Pending
from rankmixer_dist.sparse.placement import Placement, place, sharders
from rankmixer_dist.sparse.room import Room
from rankmixer_dist.sparse.tables import EmbeddingTables

# fx warns of a flag that TorchRec still reads.
logging.getLogger("torch.fx._symbolic_trace").setLevel(logging.ERROR)


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

    def start(self, ids: JaggedIds) -> Pending:
        """Begins a lookup: the ids set out to their owners. All ranks begin, send and finish lookups in one order.

        A GPU does so in the stream for what is ahead (`ahead_stream`), where the ids have to lie ready.
        """
        ...

    def finish(self, pending: Pending) -> Embedded:
        """The embeddings of a lookup that has begun, by the tables as they are now."""
        ...

    def __call__(self, ids: JaggedIds) -> Embedded:
        """Both in one."""
        ...

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

    def start(self, ids: JaggedIds) -> Pending:
        return self.module.start(ids)

    def finish(self, pending: Pending) -> Embedded:
        return self.module.finish(pending)

    def __call__(self, ids: JaggedIds) -> Embedded:
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
        self._stream = ahead_stream(module.device)

    @property
    def _tables(self) -> EmbeddingTables:
        """With sharded modules in the place of its own."""
        return self.module.module

    def start(self, ids: JaggedIds) -> Pending:
        return self._tables.start(ids, self._stream)

    def finish(self, pending: Pending) -> Embedded:
        return self._tables.finish(pending)

    def __call__(self, ids: JaggedIds) -> Embedded:
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
    """This rank's rows; a cut through columns, which a first row cannot describe, is refused."""
    assert isinstance(value, ShardedTensor), f"expected a sharded tensor, got {type(value).__name__}"
    pieces = []
    for shard in value.local_shards():
        offsets, sizes = shard.metadata.shard_offsets, shard.metadata.shard_sizes
        assert not any(offsets[1:]) and sizes[1:] == list(value.size()[1:]), f"columns are cut: {shard.metadata}"
        pieces.append(_Piece(offsets[0], shard.tensor))
    return pieces


def shard_tables(
    module: EmbeddingTables, *, settings: RowWiseAdagradSettings, fixed: Mapping[str, str], room: Room
) -> tuple[ShardedTables, Placement]:
    """Plans and shards `module`, which lies on the meta device, over all ranks of the default group.

    Args:
        fixed: table -> sharding type, for tables that the planner must not decide (`placement.place`).

    Returns:
        The sharded tables, and where they went (`placement.place`).

    Raises:
        UserError: the ranks have no memory for the tables.
    """
    fused = {"optimizer": EmbOptimType.EXACT_ROWWISE_ADAGRAD, "learning_rate": settings.lr, "eps": settings.eps}
    placement = place(module.schema, fixed=fixed, room=room)
    sharded = DistributedModelParallel(
        module,
        env=ShardingEnv.from_process_group(dist.group.WORLD),
        device=room.device,
        plan=placement.plan,
        sharders=sharders(fused),
        init_data_parallel=False,
    )
    return ShardedTables(sharded), placement


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
