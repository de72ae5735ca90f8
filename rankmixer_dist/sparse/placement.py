"""Decides which rank holds which rows of a table: the planner's choices, its plan with reasons, and its refusals."""

import logging
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.distributed as dist
from torchrec.distributed.planner import EmbeddingShardingPlanner, ParameterConstraints, Topology
from torchrec.distributed.planner.enumerators import EmbeddingEnumerator
from torchrec.distributed.planner.storage_reservations import FixedPercentageStorageReservation
from torchrec.distributed.planner.types import PlannerError, PlannerErrorType, ShardingOption
from torchrec.distributed.types import BoundsCheckMode, ModuleSharder, ShardingPlan, ShardingType

from rankmixer_dist.errors import UserError
from rankmixer_dist.schema import Table
from rankmixer_dist.sparse.tables import EmbeddingTables

# The planner warns of choices that are made on purpose here, and prints its failures, which become one line.
logging.getLogger("torchrec").setLevel(logging.CRITICAL)

TABLE_WISE, ROW_WISE = ShardingType.TABLE_WISE.value, ShardingType.ROW_WISE.value
SHARDING_TYPES = (TABLE_WISE, ROW_WISE)
_NO_ROOM = (PlannerErrorType.INSUFFICIENT_STORAGE, PlannerErrorType.STRICT_CONSTRAINTS, PlannerErrorType.PARTITION)
_NAMED_TABLES = 3
_GIB = 2**30


@dataclass(frozen=True)
class Room:
    """The ranks that tables are to be placed on.

    rows_per_rank: rows of a rank's batch, for the planner's estimates.
    memory_bytes: memory that a rank has for tables.
    local_world_size: `rank % local_world_size` is the index of the rank's device; the ranks of a host, or 1 where
        each rank sees its own device only. The planner takes it for the ranks of a host either way.
    """

    device: torch.device
    rows_per_rank: int
    memory_bytes: int
    local_world_size: int


def reaches_all_ranks(rows: int, ranks: int) -> bool:
    """Whether TorchRec's row-wise cut, blocks of ceil(rows / ranks) rows, leaves rows for the last rank.

    A shard of 0 rows must never be made. FBGEMM's backward on the CPU tells tables apart by the growth of the running
    sum of their rows (`hash_size_cumsum`); a table of 0 rows does not grow it, so the kernel takes that table and the
    next for one, and updates the next table's rows at places that the empty table's width gives.
    """
    return (ranks - 1) * math.ceil(rows / ranks) < rows


def place(
    module: EmbeddingTables, sharders: list[ModuleSharder[Any]], *, fixed: Mapping[str, str], room: Room
) -> tuple[ShardingPlan, list[dict[str, Any]]]:
    """The same plan on all ranks of the default group, which all call this.

    Args:
        module: lies on the meta device.
        fixed: table -> sharding type, for tables that the planner must not decide. A table that cannot be cut
            row-wise is placed as a whole all the same, and its reason says so: the number of ranks may change from
            one start to the next, and where a table lies changes nothing that is learnt.

    Returns:
        The plan, and on rank 0 one entry a table with its reason (the others get an empty list).

    Raises:
        UserError: the ranks have no memory for the tables.
    """
    told: tuple[ShardingPlan | None, str] = (None, "")
    explained: list[dict[str, Any]] = []
    if dist.get_rank() == 0:
        try:
            plan, explained = _plan(module, sharders, fixed, room)
            told = (plan, "")
        except PlannerError as error:
            if error.error_type not in _NO_ROOM:
                raise
            ranks = dist.get_world_size()
            available = f"{ranks} x {room.memory_bytes / _GIB:,.2f} GiB"
            told = (None, too_large(module.schema.tables, available, f"{ranks} rank{'s' * (ranks > 1)}"))
    holder = [told]
    dist.broadcast_object_list(holder)
    found, refusal = holder[0]
    if found is None:
        raise UserError(refusal)
    check_no_empty_shard(found)
    return found, explained


def check_no_empty_shard(plan: ShardingPlan) -> None:
    """Makes sure of what `reaches_all_ranks` is for."""
    for tables in plan.plan.values():
        for table, placed in tables.items():
            for shard in placed.sharding_spec.shards:
                assert min(shard.shard_sizes) > 0, f"table {table}: {shard.placement} would hold a shard without rows"


def _plan(
    module: EmbeddingTables, sharders: list[ModuleSharder[Any]], fixed: Mapping[str, str], room: Room
) -> tuple[ShardingPlan, list[dict[str, Any]]]:
    constraints = {
        name: ParameterConstraints(
            sharding_types=_choices(table, fixed.get(name), dist.get_world_size()),
            compute_kernels=["fused"],
            bounds_check_mode=BoundsCheckMode.FATAL,
        )
        for name, table in module.schema.tables.items()
    }
    on_gpu = room.device.type == "cuda"
    topology = Topology(
        world_size=dist.get_world_size(),
        local_world_size=room.local_world_size,
        compute_device=room.device.type,
        hbm_cap=room.memory_bytes if on_gpu else 0,
        ddr_cap=None if on_gpu else room.memory_bytes,
    )
    chosen: list[ShardingOption] = []
    planner = EmbeddingShardingPlanner(
        topology=topology,
        batch_size=room.rows_per_rank,
        constraints=constraints,
        storage_reservation=FixedPercentageStorageReservation(percentage=0.15),
        debug=False,
        stats=[],
        callbacks=[lambda options: chosen.extend(options) or options],  # type: ignore[func-returns-value]
    )
    enumerator = EmbeddingEnumerator(topology=topology, batch_size=room.rows_per_rank, constraints=constraints)
    alternatives = enumerator.enumerate(module, sharders)
    plan = planner.plan(module, sharders)
    return plan, [_explain(module, option, alternatives, fixed) for option in chosen]


def _choices(table: Table, fixed: str | None, ranks: int) -> list[str]:
    if not reaches_all_ranks(table.rows, ranks):
        return [TABLE_WISE]
    return list(SHARDING_TYPES) if fixed is None else [fixed]


def too_large(tables: Mapping[str, Table], available: str, where: str) -> str:
    """One line that says what tables need, what there is and what to change."""
    sizes = sorted(((table.bytes, name) for name, table in tables.items()), reverse=True)
    named = [f"{name} {size / _GIB:,.2f} GiB" for size, name in sizes[:_NAMED_TABLES]]
    rest = [f"{len(sizes) - _NAMED_TABLES} more"] if len(sizes) > _NAMED_TABLES else []
    return (
        f"the tables do not fit the memory of {where}: they need {sum(size for size, _ in sizes) / _GIB:,.2f} GiB "
        f"({', '.join(named + rest)}) and their lookups some more; there are {available} for tables; set fewer rows or "
        f"a smaller dim (features.tables.{sizes[0][1]}.rows, .dim), leave large tables out of sparse.sharding, or "
        "use more machines"
    )


def _explain(
    module: EmbeddingTables, option: ShardingOption, alternatives: Sequence[ShardingOption], fixed: Mapping[str, str]
) -> dict[str, Any]:
    rows, dim = option.tensor.shape
    bytes_per_rank = [0] * dist.get_world_size()
    for shard in option.shards:
        assert shard.rank is not None
        bytes_per_rank[shard.rank] += module.schema.tables[option.name].bytes * shard.size[0] // rows
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
        "reason": _reason(option, alternatives, fixed.get(option.name)),
    }


def _reason(option: ShardingOption, alternatives: Sequence[ShardingOption], fixed: str | None) -> str:
    ranks = dist.get_world_size()
    estimate = f"estimated {option.total_perf * 1e3:.3g} us a step"
    if fixed == option.sharding_type:
        return f"fixed by sparse.sharding; {estimate}"
    if ranks == 1:
        return f"one rank; {estimate}"
    rows = option.tensor.shape[0]
    if not reaches_all_ranks(rows, ranks):
        small = f"{rows} rows in blocks of {math.ceil(rows / ranks)} leave none for the last of {ranks} ranks"
        kept = f"sparse.sharding says {fixed}, which cannot be kept: " if fixed else ""
        return f"{kept}{small}; {estimate}"
    rest = ", ".join(
        f"{o.sharding_type} {o.total_perf * 1e3:.3g} us"
        for o in alternatives
        if o.name == option.name and o.sharding_type != option.sharding_type
    )
    return f"planner's best for the slowest rank and memory; {estimate}" + (f" (instead: {rest})" if rest else "")
