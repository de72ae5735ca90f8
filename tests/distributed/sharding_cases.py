"""Run as a script: trains small tables on 2, 3 and 4 forked ranks, and says how far they are from unsharded ones."""

import itertools
import json
import os
import sys
from pathlib import Path

import torch
import torch.distributed as dist
from torch.multiprocessing import start_processes

sys.path.insert(0, str(Path(__file__).parents[2]))

from rankmixer_dist.batch import JaggedIds
from rankmixer_dist.checkpoint.storage import read_pieces, read_whole, write_pieces
from rankmixer_dist.config import load_config
from rankmixer_dist.embedded import Embedded
from rankmixer_dist.errors import UserError
from rankmixer_dist.parallel.topology import Topology
from rankmixer_dist.schema import Schema
from rankmixer_dist.sparse.room import Room
from rankmixer_dist.sparse.shard import (
    LocalTables,
    RowWiseAdagradSettings,
    ShardedTables,
    init_tables,
    shard_tables,
    table_pieces,
)
from rankmixer_dist.sparse.tables import EmbeddingTables
from rankmixer_dist.train import room as rank_room
from rankmixer_dist.train.build import build_tables

STEPS = 4
ROWS_PER_RANK = 8
SETTINGS = RowWiseAdagradSettings(lr=0.2, eps=1e-8)
# The small table stands between tables of other widths, and beside one of its own.
NEIGHBOURS = {"before": (24, 8), "after": (25, 12), "same": (26, 4)}
CPU = torch.device("cpu")


def schema(tables: dict[str, tuple[int, int]], kinds: dict[str, str]) -> Schema:
    """Two features a table, so that a table's share of a batch is that of two."""
    features = {}
    for name in tables:
        kind = {"kind": "multi_id", "pooling": "sum"}
        if kinds[name] == "sequences":
            kind = {"kind": "sequence", "pooling": "mean", "max_length": 3}
        for copy in ("a", "b"):
            features[f"{name}_{copy}"] = {**kind, "table": name, "group": "all"}
    return Schema.model_validate(
        {
            "tables": {name: {"rows": rows, "dim": dim} for name, (rows, dim) in tables.items()},
            "groups": {"all": 1},
            "features": features,
            "tasks": {"click": {}},
        }
    )


def cases() -> dict[str, tuple[Schema, dict[str, str]]]:
    """Name -> schema and fixed sharding."""
    found = {}
    for rows, kind in itertools.product(range(2, 7), ("bags", "sequences")):
        tables = {"before": NEIGHBOURS["before"], "small": (rows, 4), **NEIGHBOURS}
        declared = schema(tables, dict.fromkeys(tables, kind))
        for way in ("table_wise", "row_wise", "planner"):
            fixed = {} if way == "planner" else dict.fromkeys(tables, way)
            found[f"{rows} rows, {kind}, {way}"] = (declared, fixed)
    for kind, way in itertools.product(("bags", "sequences"), ("table_wise", "row_wise")):
        # Most ranks hold no table of the module, or only the small one is cut.
        found[f"alone, {kind}, {way}"] = (schema({"small": (9, 4)}, {"small": kind}), {"small": way})
        tables = {"small": (9, 4), "after": (25, 12)}
        other = {"small": way, "after": "row_wise" if way == "table_wise" else "table_wise"}
        found[f"9 rows beside the other way, {kind}, {way}"] = (schema(tables, dict.fromkeys(tables, kind)), other)
    tables = {"bag": (3, 8), "seen": (5, 4), "bags": (30, 4), "history": (31, 16)}
    kinds = {"bag": "bags", "seen": "sequences", "bags": "bags", "history": "sequences"}
    for way in ("table_wise", "row_wise"):
        found[f"both modules, {way}"] = (schema(tables, kinds), dict.fromkeys(tables, way))
    return found


def ids_of(declared: Schema, step: int, rank: int) -> JaggedIds:
    """A rank's ids of a step; in the last step rank 0 has nothing to look up."""
    random = torch.Generator().manual_seed(1000 * step + rank)
    features = declared.id_features()
    lengths_FB = torch.randint(0, 4, (len(features), ROWS_PER_RANK), generator=random, dtype=torch.int32)
    if rank == 0 and step == STEPS - 1:
        lengths_FB.zero_()
    rows = [declared.tables[declared.features[name].table].rows for name in features]
    values = [
        torch.randint(0, most, (int(lengths.sum()),), generator=random)
        for most, lengths in zip(rows, lengths_FB, strict=True)
    ]
    return JaggedIds.on_host(features, torch.cat(values), lengths_FB)


def by_name(found: Embedded) -> list[tuple[str, torch.Tensor]]:
    """All embeddings, sorted by the name of their feature."""
    events = {name: of_sequence.values_ND for name, of_sequence in found.events.items()}
    return sorted({**found.vectors, **events}.items())


def backward(found: Embedded, step: int, rank: int) -> None:
    """This rank's part of a loss that is a mean over the rows of all ranks, as `parallel.engine` scales it."""
    random = torch.Generator().manual_seed(7777 * step + rank)
    loss = torch.zeros(())
    for _, value in by_name(found):
        loss = loss + (value.sin() * torch.randn(value.shape, generator=random)).sum()
    (loss / ROWS_PER_RANK).backward()


def room_of(ranks: int, memory_bytes: int) -> Room:
    return Room(device=CPU, rows_per_rank=ROWS_PER_RANK, memory_bytes=memory_bytes, local_world_size=ranks)


def refusal(ranks: int, *, memory_bytes: int) -> str:
    """What this rank says of a table of 3,400 bytes that has so much memory on each rank."""
    declared = schema({"large": (50, 16)}, {"large": "bags"})
    module = EmbeddingTables(declared, device=torch.device("meta"))
    try:
        shard_tables(module, settings=SETTINGS, fixed={}, room=room_of(ranks, memory_bytes))
    except UserError as error:
        return str(error)
    return ""


def uneven(rank: int, ranks: int) -> dict:
    """What plan.json tells (rank 0) where the last rank's host is the smallest; the plan stays within that rank."""
    config = load_config(Path(__file__).parents[2] / "configs" / "quickstart.yaml")
    needed = sum(table.bytes for table in config.features.tables.values())
    rank_room.total_memory = lambda: needed * (2 if rank == ranks - 1 else 2**9)  # of which one rank has a part
    topology = Topology(rank, ranks, rank, ranks, CPU)
    tables, told = build_tables(config, topology, rows_per_rank=ROWS_PER_RANK)
    held = sum(piece.tensor.nbytes for piece in table_pieces(tables))
    everywhere: list = [None] * ranks
    dist.all_gather_object(everywhere, held)
    return {"planned_for": told["planned_for"], "held": everywhere, "needed": needed}


def trained(declared: Schema, fixed: dict[str, str], rank: int, ranks: int) -> tuple[ShardedTables, list[dict]]:
    room = room_of(ranks, 2**30)
    module = EmbeddingTables(declared, device=torch.device("meta"))
    tables, placement = shard_tables(module, settings=SETTINGS, fixed=fixed, room=room)
    init_tables(tables, scale=0.1, seed=3)
    pending = tables.start(ids_of(declared, 0, rank))
    for step in range(STEPS):
        tables.set_lr(0.2)
        found = tables.finish(pending)
        pending = tables.start(ids_of(declared, step + 1, rank))  # before the tables move
        if step % 2:
            pending.send()
        backward(found, step, rank)
    return tables, placement.tables


def reference(declared: Schema, ranks: int) -> dict[str, torch.Tensor]:
    """The same steps on unsharded tables, all ranks' rows in one lookup."""
    tables = LocalTables(EmbeddingTables(declared, device=CPU), settings=SETTINGS)
    init_tables(tables, scale=0.1, seed=3)
    for step in range(STEPS):
        tables.set_lr(0.2)
        each = [ids_of(declared, step, rank) for rank in range(ranks)]
        starts = [[0, *ids.lengths_FB.sum(1).cumsum(0).tolist()] for ids in each]
        values = [
            ids.values[start[feature] : start[feature + 1]]
            for feature in range(len(each[0].features))
            for ids, start in zip(each, starts, strict=True)
        ]
        lengths_FB = torch.cat([ids.lengths_FB for ids in each], dim=1)
        found = tables(JaggedIds.on_host(each[0].features, torch.cat(values), lengths_FB))
        generators = [torch.Generator().manual_seed(7777 * step + rank) for rank in range(ranks)]
        loss = torch.zeros(())
        for name, value in by_name(found):
            parts = [ids.counts[ids.features.index(name)] if name in found.events else ROWS_PER_RANK for ids in each]
            shapes = [(part, value.shape[1]) for part in parts]
            weights = torch.cat(
                [torch.randn(s, generator=random) for s, random in zip(shapes, generators, strict=True)]
            )
            loss = loss + (value.sin() * weights).sum()
        (loss / (ROWS_PER_RANK * ranks)).backward()
    return {piece.key: piece.tensor for piece in table_pieces(tables)}


def assembled(tables: ShardedTables, ranks: int) -> dict[str, torch.Tensor]:
    """The whole tables and accumulators; a row that no rank holds is NaN.

    Raises:
        AssertionError: a row lies on two ranks.
    """
    mine = [(p.key, p.shape, p.offsets[0], p.tensor.detach().clone()) for p in table_pieces(tables)]
    gathered: list = [None] * ranks
    dist.all_gather_object(gathered, mine)
    whole: dict[str, torch.Tensor] = {}
    for key, shape, first, part in itertools.chain(*gathered):
        tensor = whole.setdefault(key, torch.full(shape, torch.nan))
        assert tensor[first : first + len(part)].isnan().all(), f"{key}: rows {first}.. lie on two ranks"
        tensor[first : first + len(part)] = part
    return whole


def taken_up(ranks: int, folder: Path) -> list[str]:
    """Tensors that differ after this many ranks have loaded what fewer saved; saves its own for more ranks."""
    declared, fixed = cases()["both modules, row_wise"]
    room, module = room_of(ranks, 2**30), EmbeddingTables(declared, device=torch.device("meta"))
    tables, _ = shard_tables(module, settings=SETTINGS, fixed=fixed, room=room)
    saved = folder / f"saved{ranks - 1}"
    different = []
    if saved.exists():
        read_pieces(table_pieces(tables), saved)
        found, expected = assembled(tables, ranks), read_whole(saved)
        assert found.keys() == expected.keys()
        different = [key for key in found if not torch.equal(found[key], expected[key])]
    init_tables(tables, scale=0.1, seed=ranks)
    backward(tables(ids_of(declared, 0, dist.get_rank())), 0, dist.get_rank())
    write_pieces(table_pieces(tables), folder / f"saved{ranks}")
    return different


def rank_main(rank: int, ranks: int, folder: str) -> None:
    store = dist.FileStore(f"{folder}/store{ranks}", ranks)
    dist.init_process_group("gloo", store=store, rank=rank, world_size=ranks)
    results = {}
    for name, (declared, fixed) in cases().items():
        tables, plan = trained(declared, fixed, rank, ranks)
        found = assembled(tables, ranks)
        if rank:
            continue
        expected = reference(declared, ranks)
        assert found.keys() == expected.keys()
        gaps = {}
        for key, tensor in expected.items():
            gap = float((found[key] - tensor).abs().max() / tensor.abs().max())
            gaps[key] = gap if gap == gap else float("inf")
        results[name] = {"gap": max(gaps.values()), "plan": {t["name"]: [t["sharding"], t["reason"]] for t in plan}}
    refusals: list = [None] * ranks
    dist.all_gather_object(refusals, refusal(ranks, memory_bytes=1000))
    mine = 1000 if rank == ranks - 1 else 2**30
    of_one: list = [None] * ranks
    dist.all_gather_object(of_one, refusal(ranks, memory_bytes=mine))
    told = {"uneven": uneven(rank, ranks), "of_one": of_one, "cases": results, "refusals": refusals}
    told["taken_up"] = taken_up(ranks, Path(folder))
    if rank == 0:
        Path(folder, f"ranks{ranks}.json").write_text(json.dumps(told))
    dist.barrier()
    os._exit(0)  # as the verbs end: gloo's threads may abort a process in its static destructors


if __name__ == "__main__":
    torch.set_num_threads(1)
    for count in (2, 3, 4):
        start_processes(rank_main, args=(count, sys.argv[1]), nprocs=count, start_method="fork")
