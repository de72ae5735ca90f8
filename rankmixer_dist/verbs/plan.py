"""Tells what a run would be, without starting it: the dense model's size and FLOPs, and where its tables would lie."""

import argparse
import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.table import Table as Grid

from rankmixer_dist.command_line import config_parser, console
from rankmixer_dist.config import RunConfig, load_config
from rankmixer_dist.cost import DenseCost
from rankmixer_dist.cost.gpu import GPU_KEYS, gpu_of_key
from rankmixer_dist.cost.memory import moments_of
from rankmixer_dist.errors import UserError, nearest

if TYPE_CHECKING:
    from rankmixer_dist.train.room import Host

USAGE = f"""\
python launch/plan.py configs/rankmixer_100m.yaml
python launch/plan.py configs/quickstart.yaml model.backbone=wukong
python launch/plan.py configs/rankmixer_1b.yaml --nodes 2 --gpus 8 --gpu h100
python launch/plan.py configs/quickstart.yaml --nodes 4 --ranks 2

Needs no prepared data, no GPU and no memory for the weights. FLOPs are those of one row: 2 for each multiply-add of a
matrix product (rankmixer_dist/cost/part.py says what is counted). With --gpus or --ranks, the plan is the one that
training makes on such hosts: with the ids a row that the prepared data's manifest tells, or estimates where there is
none. GPUs: {", ".join(GPU_KEYS)}.
"""

_BYTES = 4  # weights, gradients, moments and the tables' accumulators are all fp32 masters
_GIB = 2**30


def main(arguments: list[str]) -> None:
    """Parses the command line and prints the plan."""
    parser = config_parser("plan", __doc__, USAGE)
    parser.add_argument("--nodes", type=_count, default=1, metavar="N", help="hosts")
    ranks = parser.add_mutually_exclusive_group()
    ranks.add_argument("--gpus", type=_count, metavar="M", help="GPUs of each host, one rank on each")
    ranks.add_argument("--ranks", type=_count, metavar="M", help="ranks of each host, on CPU cores")
    parser.add_argument("--gpu", metavar="NAME", help="kind of the GPUs; this machine's by default")
    parser.add_argument(
        "--host-memory", type=float, metavar="GIB", help="memory of each host; this machine's, or enough beside --gpu"
    )
    parser.add_argument("--json", type=Path, metavar="PATH", help="write the plan there, as a run's plan.json tells it")
    options = parser.parse_intermixed_args(arguments)
    config = load_config(options.config, options.overrides)
    if options.gpu is not None and options.gpus is None:
        raise UserError("--gpu goes with --gpus, the GPUs of each host: --gpus 8, say")
    asks = options.nodes != 1 or options.host_memory is not None or options.json is not None
    if asks and options.gpus is None and options.ranks is None:
        raise UserError("--nodes, --host-memory and --json go with --gpus or --ranks, the ranks of each host")
    if options.host_memory is not None and not 0 < options.host_memory < float("inf"):
        raise UserError(f"--host-memory {options.host_memory} is no memory; give GiB, such as 512")
    from rankmixer_dist.models.counted import count
    from rankmixer_dist.train.build import weightless_model

    shown = console(soft_wrap=True)
    cost = count(weightless_model(config), measured_ids(config, shared=False)[0])
    shown.print(dense_grid(config, cost), tables_grid(config))
    copies = 2 + moments_of(config.dense.optimizer)
    batch = config.loader.batch_size
    shown.print(
        f"dense: {cost.parameters * _BYTES * copies / _GIB:,.2f} GiB for fp32 weights, gradients and "
        f"{config.dense.optimizer} moments before ZeRO splits them; "
        f"{cost.flops_per_row_train * batch / 1e12:,.3g} TFLOP a step of {batch:,} rows"
    )
    if options.gpus is None and options.ranks is None:
        tell_this_machine(config, shown)
    else:
        tell_placement(config, options, shown)


def tell_this_machine(config: RunConfig, shown: Any) -> None:
    """Whether this machine has the memory for the tables."""
    from rankmixer_dist.sparse.explain import too_large
    from rankmixer_dist.train.build import machine_room

    tables = config.features.tables
    needed = sum(table.bytes for table in tables.values())
    room, machine = machine_room(config)
    shown.print(f"tables: {needed / _GIB:,.2f} GiB; {machine} has {room / _GIB:,.2f} GiB for tables")
    if needed > room:
        told = too_large(tables, room, ranks=1, where=machine)
        shown.print(f"warning: {told}; {-(-needed // max(room, 1)):,} machines like it at least")


def tell_placement(config: RunConfig, options: argparse.Namespace, shown: Any) -> None:
    """Where the tables would lie on the ranks that the command line names."""
    from data_pipeline.row_order import told_of_shared
    from rankmixer_dist.parallel.topology import Topology
    from rankmixer_dist.sparse.placement import planned
    from rankmixer_dist.train.build import planned_for, require_ranks, room_on

    host = host_of(options)
    ranks = options.nodes * host.ranks
    # Its hosts are not asked for, and a name for each of the most ranks that can be typed would fill the memory.
    rows = Topology(0, ranks, 0, host.ranks, host.device, hosts=("",)).share_of(config.loader.batch_size)
    require_ranks(config, ranks)
    measured, where = measured_ids(config)
    room = room_on(config, host, ranks=ranks, rows_per_rank=rows, saves=True, ids_per_row=measured)
    kind = "CPU ranks" if host.gpu is None else f"{host.gpu.key} GPUs"
    shown.print(
        f"{options.nodes} x {host.ranks} {kind}, {rows:,} rows each; a rank has {room.memory_bytes / _GIB:,.2f} GiB "
        f"for tables; ids a row {where}"
    )
    shared = told_of_shared(
        batch_size=config.loader.batch_size, lanes=config.loader.interleave, ranks=ranks,
        row_group_rows=config.data.row_group_rows,
    )  # fmt: skip
    for note in (host.note, shared):
        if note:
            shown.print(f"note: {note}")
    try:
        with console(stderr=True).status(f"placing {len(config.features.tables)} tables on {ranks:,} ranks"):
            tables = planned(config.features, ranks=ranks, fixed=config.sparse.sharding, room=room).tables
    except UserError as error:
        least = -(-sum(table.bytes for table in config.features.tables.values()) // max(room.memory_bytes, 1))
        shown.print(f"warning: {error}" + (f"; {least:,} ranks like these at least" if least > ranks else ""))
        return
    shown.print(placement_grid(tables))
    for line in fullest(tables, ranks, room.memory_bytes):
        shown.print(line)
    if options.json is not None:
        from rankmixer_dist.small_file import write_text

        plan = {"world_size": ranks, "tables": tables, "planned_for": planned_for(host, room)}
        write_text(options.json, json.dumps(plan, indent=1) + "\n")


def host_of(options: argparse.Namespace) -> "Host":
    """The hosts that the command line names.

    Raises:
        UserError: a GPU that is not known, or this machine's where there is none.
    """
    import torch

    from rankmixer_dist.train.room import Host, host_here

    memory = None if options.host_memory is None else int(options.host_memory * _GIB)
    if options.gpu is not None:
        gpu = gpu_of_key(options.gpu)
        if gpu is None:
            raise UserError(f"--gpu {options.gpu}: not known{nearest(options.gpu.lower(), GPU_KEYS)}")
        return Host(options.gpus, memory, gpu)
    if options.gpus is not None and not torch.cuda.is_available():
        raise UserError(f"--gpus without --gpu: this machine has no GPU to take; name one: {', '.join(GPU_KEYS)}")
    here = host_here(torch.device("cpu" if options.gpus is None else "cuda:0"), options.gpus or options.ranks)
    return here if memory is None else Host(here.ranks, memory, here.gpu, here.note)


def measured_ids(config: RunConfig, *, shared: bool | None = None) -> tuple[dict[str, float], str]:
    """Mean ids a row, by feature, as the prepared data's manifest tells them, and where they are from.

    Args:
        shared: those that a group shares are counted once; by default as the loader gives them.
    """
    from data_pipeline.manifest import read_manifest

    prepared = config.data.prepared
    try:
        manifest = read_manifest(prepared, config.features)
        found = manifest.ids_of_rows(shared=config.loader.share if shared is None else shared)
    except UserError:
        return {}, f"estimated, as {prepared} holds no data prepared for this config"
    return found, "measured" if found else f"estimated, as the manifest of {prepared} does not tell them"


def placement_grid(tables: list[dict[str, Any]]) -> Grid:
    """One line a table: how it is cut, where it lies, and what it takes there."""
    from rankmixer_dist.report.formats import rank_ranges

    grid = Grid("table", "sharding", "ranks")
    for column in ("ids a row", "GiB", "MiB a rank", "us a step"):
        grid.add_column(column, justify="right")
    for table in tables:
        grid.add_row(
            table["name"],
            table["sharding"],
            rank_ranges(table["ranks"]),
            f"{sum(table['ids_per_row']):,.3g}",
            f"{table['bytes'] / _GIB:,.2f}",
            f"{max(table['bytes_per_rank']) / 2**20:,.1f}",
            f"{max(table['us_per_rank']):,.3g}",
        )
    return grid


def fullest(tables: list[dict[str, Any]], ranks: int, memory_bytes: int) -> list[str]:
    """Lines about the rank with the most bytes, and the one that the planner expects to take longest."""
    held = [sum(table["bytes_per_rank"][rank] for table in tables) for rank in range(ranks)]
    took = [sum(table["us_per_rank"][rank] for table in tables) for rank in range(ranks)]
    most, slowest = held.index(max(held)), took.index(max(took))
    return [
        f"fullest: rank {most} with {held[most] / _GIB:,.2f} of {memory_bytes / _GIB:,.2f} GiB, "
        f"{held[most] / max(sum(held) / ranks, 1):.2f}x the mean",
        f"slowest: rank {slowest}, whose lookups and their exchange are estimated at {took[slowest]:,.0f} us a step",
    ]


def dense_grid(config: RunConfig, cost: DenseCost) -> Grid:
    """Parameters and FLOPs by part."""
    model = config.model
    tokens = model.num_tokens(config.features.num_tokens)
    grid = Grid(title=f"{config.name}: {model.backbone}, T {tokens}, D {model.token_dim}")
    grid.add_column("dense part")
    for column in ("parameters", "forward FLOPs a row", "training FLOPs a row"):
        grid.add_column(column, justify="right")
    for name, part in cost.breakdown().items():
        grid.add_row(name, *(f"{value:,}" for value in part.values()))
    grid.add_section()
    whole = (cost.parameters, cost.flops_per_row_forward, cost.flops_per_row_train)
    grid.add_row("all", *(f"{value:,}" for value in whole))
    return grid


def tables_grid(config: RunConfig) -> Grid:
    """Rows, width and memory of every table, accumulator included."""
    grid = Grid("table")
    for column in ("rows", "dim", "MiB"):
        grid.add_column(column, justify="right")
    total = 0
    for name, table in config.features.tables.items():
        size = table.bytes
        total += size
        grid.add_row(name, f"{table.rows:,}", str(table.dim), f"{size / 2**20:,.1f}")
    grid.add_section()
    grid.add_row("all", f"{sum(t.rows for t in config.features.tables.values()):,}", "", f"{total / 2**20:,.1f}")
    return grid


def _count(text: str) -> int:
    if not text.isdecimal() or not 1 <= int(text) <= 2**16:
        raise argparse.ArgumentTypeError(f"{text!r} is not a number from 1 to {2**16}")
    return int(text)
