#!/usr/bin/env python
"""Tells what a run would be, without starting it: the dense model's parameters and FLOPs, and the tables' memory."""

from rich.table import Table as Grid

from rankmixer_dist.command_line import config_parser, console, parse_config, run_verb
from rankmixer_dist.config import RunConfig
from rankmixer_dist.cost import DenseCost

USAGE = """\
python launch/plan.py configs/rankmixer_100m.yaml
python launch/plan.py configs/quickstart.yaml model.backbone=wukong

Needs no prepared data and no memory for the weights. FLOPs are those of one row: 2 for each multiply-add of a matrix
product, three times as many in training (rankmixer_dist/cost/part.py says what is counted).
"""

_BYTES = 4  # weights, gradients, moments and the tables' accumulators are all fp32 masters
_MOMENTS = {"adam": 2, "adagrad": 1, "rmsprop": 1}


def main(arguments: list[str]) -> None:
    """Parses the command line and prints the plan."""
    config = parse_config(config_parser("plan.py", __doc__, USAGE), arguments)
    from rankmixer_dist.sparse.placement import too_large
    from rankmixer_dist.train.build import weightless_model
    from rankmixer_dist.train.room import machine_room

    shown = console(soft_wrap=True)
    cost = weightless_model(config).cost()
    shown.print(dense_grid(config, cost), tables_grid(config))
    copies = 2 + _MOMENTS[config.dense.optimizer]
    batch = config.loader.batch_size
    shown.print(
        f"dense: {cost.parameters * _BYTES * copies / 2**30:,.2f} GiB for fp32 weights, gradients and "
        f"{config.dense.optimizer} moments before ZeRO splits them; "
        f"{cost.flops_per_row_train * batch / 1e12:,.3g} TFLOP a step of {batch:,} rows"
    )
    tables = config.features.tables
    needed = sum(table.bytes for table in tables.values())
    room, machine = machine_room(config)
    available = f"{room / 2**30:,.2f} GiB"
    shown.print(f"tables: {needed / 2**30:,.2f} GiB; {machine} has {available} for tables")
    if needed > room:
        shown.print(
            f"warning: {too_large(tables, available, machine)}; {-(-needed // room):,} machines like it at least"
        )


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


if __name__ == "__main__":
    run_verb(main)
