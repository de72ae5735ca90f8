"""A plan in words and figures for people: where each table went and why, or why the tables do not fit."""

import math
from collections.abc import Collection, Mapping, Sequence
from typing import Any

from torchrec.distributed.planner.types import ShardingOption

from rankmixer_dist.schema import Schema, Table
from rankmixer_dist.sparse.room import Room

_NAMED_TABLES = 3
_ALIKE = 0.95
"""Hosts of one kind differ by some pages of memory: who has this share of the most has as much as others."""
_GIB = 2**30


def too_large(
    tables: Mapping[str, Table],
    memory_bytes: int,
    *,
    ranks: int,
    where: str | None = None,
    whole: Collection[str] = (),
) -> str:
    """One line that says what tables need, what there is and what to change.

    Args:
        memory_bytes: of each rank, for tables.
        where: the ranks, if they are better called something else.
        whole: tables that cannot be cut, so that each has to fit one rank.
    """
    available = f"{f'{ranks} x ' if where is None or ranks > 1 else ''}{memory_bytes / _GIB:,.2f} GiB"
    sizes = sorted(((table.bytes, name) for name, table in tables.items()), reverse=True)
    named = [f"{name} {size / _GIB:,.2f} GiB" for size, name in sizes[:_NAMED_TABLES]]
    rest = [f"{len(sizes) - _NAMED_TABLES} more"] if len(sizes) > _NAMED_TABLES else []
    large = [name for size, name in sizes if name in whole and size > memory_bytes]
    cut = f"; larger than a rank's share and not to be cut: {', '.join(large)}" if large else ""
    return (
        f"the tables do not fit the memory of {where or _ranks(ranks)}: they need "
        f"{sum(size for size, _ in sizes) / _GIB:,.2f} GiB ({', '.join(named + rest)}) and their lookups some more; "
        f"there are {available} for tables{cut}; set fewer rows or a smaller dim (features.tables.{sizes[0][1]}.rows, "
        ".dim), leave large tables out of sparse.sharding, or use more machines"
    )


def uneven(memory_bytes: Sequence[int]) -> str:
    """One line where ranks, in their order, have differing memory for tables; else nothing."""
    least, most = min(memory_bytes), max(memory_bytes)
    if least >= _ALIKE * most:
        return ""
    return (
        f"the tables are placed as if each rank had no more memory for them than rank {memory_bytes.index(least)}, "
        f"{least / _GIB:,.2f} GiB; rank {memory_bytes.index(most)} has {most / _GIB:,.2f} GiB"
    )


def _ranks(ranks: int) -> str:
    return f"{ranks} rank{'s' * (ranks > 1)}"


def explained(
    schema: Schema,
    chosen: Sequence[ShardingOption],
    alternatives: Sequence[ShardingOption],
    *,
    ranks: int,
    fixed: Mapping[str, str],
    room: Room,
) -> list[dict[str, Any]]:
    """One entry a table, as `plan.json` tells it; `us` are microseconds of a step that the planner expects of it."""
    entries = []
    for option in chosen:
        rows, dim = option.tensor.shape
        bytes_per_rank, us_per_rank = [0] * ranks, [0.0] * ranks
        for shard in option.shards:
            assert shard.rank is not None and shard.perf is not None
            bytes_per_rank[shard.rank] += schema.tables[option.name].bytes * shard.size[0] // rows
            us_per_rank[shard.rank] += shard.perf.total * 1e3
        features = schema.features_of(option.name)
        entries.append(
            {
                "name": option.name,
                "rows": rows,
                "dim": dim,
                "module": "sequences" if option.name in schema.unpooled_tables() else "bags",
                "features": list(features),
                "ids_per_row": [room.ids_per_row.get(feature, 1.0) for feature in features],
                "sharding": option.sharding_type,
                "compute_kernel": option.compute_kernel,
                "ranks": [shard.rank for shard in option.shards],
                "bytes": sum(bytes_per_rank),
                "bytes_per_rank": bytes_per_rank,
                "us_per_rank": us_per_rank,
                "reason": _reason(option, alternatives, fixed.get(option.name), ranks),
            }
        )
    return entries


def _slowest_us(option: ShardingOption) -> float:
    """Microseconds that a table takes on the rank that it costs most."""
    return max(shard.perf.total for shard in option.shards if shard.perf is not None) * 1e3


def _reason(option: ShardingOption, alternatives: Sequence[ShardingOption], fixed: str | None, ranks: int) -> str:
    estimate = f"estimated {_slowest_us(option):.3g} us a step"
    if fixed == option.sharding_type:
        return f"fixed by sparse.sharding; {estimate}"
    if ranks == 1:
        return f"one rank; {estimate}"
    rest = [o for o in alternatives if o.name == option.name and o.sharding_type != option.sharding_type]
    if not rest:
        rows = option.tensor.shape[0]
        small = f"{rows} rows in blocks of {math.ceil(rows / ranks)} leave none for the last of {ranks} ranks"
        kept = f"sparse.sharding says {fixed}, which cannot be kept: " if fixed else ""
        return f"{kept}{small}; {estimate}"
    others = ", ".join(f"{o.sharding_type} {_slowest_us(o):.3g} us" for o in rest)
    return f"planner's best for the slowest rank and memory; {estimate} (instead: {others})"
