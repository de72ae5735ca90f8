"""Decides which rank holds which rows of a table: the planner's choices, its plan with reasons, and its refusals.

`planned` is a function of the tables and of the room for them alone, so that anybody can ask it for ranks that are not
there; `place` is the same with all ranks of a job. TorchRec's own estimates are taken as they are.
"""

import dataclasses
import logging
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.distributed as dist
from torch import nn
from torch.distributed._shard.metadata import ShardMetadata
from torchrec.distributed.embedding import EmbeddingCollectionSharder
from torchrec.distributed.embeddingbag import EmbeddingBagCollectionSharder
from torchrec.distributed.planner import EmbeddingShardingPlanner, ParameterConstraints, Topology
from torchrec.distributed.planner.enumerators import EmbeddingEnumerator
from torchrec.distributed.planner.proposers import (
    MAX_PROPOSALS,
    GreedyProposer,
    GridSearchProposer,
    UniformProposer,
)
from torchrec.distributed.planner.storage_reservations import FixedPercentageStorageReservation
from torchrec.distributed.planner.types import PlannerError, PlannerErrorType, ShardingOption
from torchrec.distributed.types import BoundsCheckMode, ModuleSharder, ShardingPlan, ShardingType
from torchrec.optim.rowwise_adagrad import RowWiseAdagrad

from rankmixer_dist.errors import UserError
from rankmixer_dist.schema import Schema, Table
from rankmixer_dist.sparse.explain import explained, too_large, uneven
from rankmixer_dist.sparse.room import Room
from rankmixer_dist.sparse.tables import EmbeddingTables

# The planner warns of choices that are made on purpose here, and prints its failures, which become one line.
logging.getLogger("torchrec").setLevel(logging.CRITICAL)

TABLE_WISE, ROW_WISE = ShardingType.TABLE_WISE.value, ShardingType.ROW_WISE.value
SHARDING_TYPES = (TABLE_WISE, ROW_WISE)
_NO_ROOM = (PlannerErrorType.INSUFFICIENT_STORAGE, PlannerErrorType.STRICT_CONSTRAINTS, PlannerErrorType.PARTITION)
_PLACED = 2**17
"""Proposals times ranks for which all combinations are tried, some 10 s: TorchRec's own limit on up to 13 ranks.
Of more tables on more ranks, its greedy search makes the proposals."""
_MILLISECONDS = 1000  # the planner counts in bytes a millisecond


@dataclass(frozen=True)
class Placement:
    """Where tables go: TorchRec's plan, and one entry a table for people, as `plan.json` tells it.

    memory_bytes: that each rank was taken to have for tables, which is what the smallest has.
    note: that ranks have more of it than that, or nothing.
    """

    plan: ShardingPlan
    tables: list[dict[str, Any]]
    memory_bytes: int
    note: str = ""


class _BagSharder(EmbeddingBagCollectionSharder):
    """Offers row-wise sharding on CPU too: gloo has the reduce-scatter that it needs."""

    def sharding_types(self, compute_device_type: str) -> list[str]:
        return list(SHARDING_TYPES)


class _RowSharder(EmbeddingCollectionSharder):
    def sharding_types(self, compute_device_type: str) -> list[str]:
        return list(SHARDING_TYPES)


def sharders(fused_params: dict[str, Any]) -> list[ModuleSharder[Any]]:
    """What shards pooled tables and those of sequences.

    Args:
        fused_params: of FBGEMM's optimizer inside backward.
    """
    return [_BagSharder(fused_params=dict(fused_params)), _RowSharder(fused_params=dict(fused_params))]


def reaches_all_ranks(rows: int, ranks: int) -> bool:
    """Whether TorchRec's row-wise cut, blocks of ceil(rows / ranks) rows, leaves rows for the last rank.

    A shard of 0 rows must never be made. FBGEMM's backward on the CPU tells tables apart by the growth of the running
    sum of their rows (`hash_size_cumsum`); a table of 0 rows does not grow it, so the kernel takes that table and the
    next for one, and updates the next table's rows at places that the empty table's width gives.
    """
    return (ranks - 1) * math.ceil(rows / ranks) < rows


def planned(schema: Schema, *, ranks: int, fixed: Mapping[str, str], room: Room) -> Placement:
    """The plan for tables on so many ranks; needs neither them, their devices nor memory for the tables.

    Args:
        fixed: table -> sharding type, for tables that the planner must not decide. A table that cannot be cut
            row-wise is placed as a whole all the same, and its reason says so: the number of ranks may change from
            one start to the next, and where a table lies changes nothing that is learnt.

    Raises:
        UserError: the ranks have no memory for the tables.
    """
    try:
        return _planned(schema, ranks, fixed, room)
    except PlannerError as error:
        if error.error_type not in _NO_ROOM:
            raise
        whole = {
            name for name, table in schema.tables.items() if ROW_WISE not in _choices(table, fixed.get(name), ranks)
        }
        raise UserError(too_large(schema.tables, room.memory_bytes, ranks=ranks, whole=whole)) from error


def place(schema: Schema, *, fixed: Mapping[str, str], room: Room) -> Placement:
    """The same plan on all ranks of the default group, which all call this; made by rank 0, for the least memory.

    Args:
        fixed: as `planned`.

    Returns:
        The plan, with each shard on the device that its rank has; the entries for people on rank 0 alone.

    Raises:
        UserError: as `planned`, on all ranks.
    """
    rooms: list[tuple[int, str]] = [(0, "")] * dist.get_world_size()
    dist.all_gather_object(rooms, (room.memory_bytes, str(room.device)))
    memory = [of_rank for of_rank, _ in rooms]
    room, note = dataclasses.replace(room, memory_bytes=min(memory)), uneven(memory)
    told: tuple[ShardingPlan | None, str] = (None, "")
    entries: list[dict[str, Any]] = []
    if dist.get_rank() == 0:
        try:
            found = planned(schema, ranks=len(rooms), fixed=fixed, room=room)
            told, entries = (found.plan, ""), found.tables
        except UserError as error:
            told = (None, f"{error}{note and f'; {note}'}")
    holder = [told]
    dist.broadcast_object_list(holder)
    plan, refusal = holder[0]
    if plan is None:
        raise UserError(refusal)
    _on_own_devices(plan, [device for _, device in rooms])
    return Placement(plan, entries, room.memory_bytes, note)


def _on_own_devices(plan: ShardingPlan, devices: Sequence[str]) -> None:
    """Names each rank's real device; the planner counts them as if all hosts had equally many ranks and GPUs to see."""
    for tables in plan.plan.values():
        for placed in tables.values():
            shards = placed.sharding_spec.shards
            for place, shard in enumerate(shards):
                rank = shard.placement.rank()
                where = f"rank:{rank}/{devices[rank]}"
                shards[place] = ShardMetadata(shard.shard_offsets, shard.shard_sizes, where)


def check_no_empty_shard(plan: ShardingPlan) -> None:
    """Makes sure of what `reaches_all_ranks` is for."""
    for tables in plan.plan.values():
        for table, placed in tables.items():
            for shard in placed.sharding_spec.shards:
                assert min(shard.shard_sizes) > 0, f"table {table}: {shard.placement} would hold a shard without rows"


def _planned(schema: Schema, ranks: int, fixed: Mapping[str, str], room: Room) -> Placement:
    module: nn.Module = EmbeddingTables(schema, device=torch.device("meta"))
    for weight in module.parameters():
        weight._optimizer_classes = [RowWiseAdagrad]  # type: ignore[attr-defined]  # so that accumulators take memory
    by = sharders({})
    constraints = {name: _constraints(schema, name, fixed.get(name), ranks, room) for name in schema.tables}
    topology = _topology(ranks, room)
    batch: dict[str, Any] = {"topology": topology, "batch_size": room.rows_per_rank, "constraints": constraints}
    enumerator = EmbeddingEnumerator(**batch)
    chosen: list[ShardingOption] = []
    planner = EmbeddingShardingPlanner(
        **batch,
        enumerator=enumerator,
        proposer=[
            GridSearchProposer(max_proposals=min(MAX_PROPOSALS, _PLACED // ranks)),
            GreedyProposer(),
            GreedyProposer(use_depth=False),
            UniformProposer(),
        ],
        storage_reservation=FixedPercentageStorageReservation(percentage=0.0),
        debug=False,
        stats=[],
        callbacks=[lambda options: chosen.extend(options) or options],  # type: ignore[func-returns-value]
    )
    plan = planner.plan(module, by)
    check_no_empty_shard(plan)
    alternatives = enumerator.enumerate(module, by)  # what the planner has enumerated
    entries = explained(schema, chosen, alternatives, ranks=ranks, fixed=fixed, room=room)
    return Placement(plan, entries, room.memory_bytes)


def _constraints(schema: Schema, name: str, fixed: str | None, ranks: int, room: Room) -> ParameterConstraints:
    return ParameterConstraints(
        sharding_types=_choices(schema.tables[name], fixed, ranks),
        compute_kernels=["fused"],
        pooling_factors=[room.ids_per_row.get(feature, 1.0) for feature in schema.features_of(name)],
        # Ids are checked where they are read. One beyond its table that comes here all the same is a fault of the
        # program or the machine: the other modes would train on another row in its place, and go on.
        bounds_check_mode=BoundsCheckMode.FATAL,
    )


def _choices(table: Table, fixed: str | None, ranks: int) -> list[str]:
    if not reaches_all_ranks(table.rows, ranks):
        return [TABLE_WISE]
    return list(SHARDING_TYPES) if fixed is None else [fixed]


def _topology(ranks: int, room: Room) -> Topology:
    on_gpu = room.device.type == "cuda"
    rates = {}
    if room.rates is not None:
        rates["hbm_mem_bw" if on_gpu else "ddr_mem_bw"] = room.rates.memory / _MILLISECONDS
        rates["intra_host_bw"] = room.rates.within_host / _MILLISECONDS
        rates["inter_host_bw"] = room.rates.between_hosts / _MILLISECONDS
    return Topology(
        world_size=ranks,
        local_world_size=min(room.local_world_size, ranks),
        compute_device=room.device.type,
        hbm_cap=room.memory_bytes if on_gpu else 0,
        ddr_cap=None if on_gpu else room.memory_bytes,
        **rates,
    )
