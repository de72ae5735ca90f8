#!/usr/bin/env python
"""Scores a split with a run's newest checkpoint: AUC, UAUC and calibration of every task, and the report."""

from functools import partial
from typing import Any

from rich.console import Console
from rich.table import Table

from rankmixer_dist.command_line import config_parser, parse_config, run_verb
from rankmixer_dist.config import RunConfig

MAX_SHOWN = 25
"""Values of a column to slice by that are printed."""

USAGE = """\
python launch/evaluate.py configs/quickstart.yaml
torchrun --standalone --nproc_per_node 2 launch/evaluate.py configs/quickstart.yaml eval.split=test
python launch/evaluate.py configs/quickstart.yaml "eval.slices=[user_activity,duration_bucket]"

Writes eval.json, predictions/*.parquet and report.html into the run directory.
"""


def main(arguments: list[str]) -> None:
    """Parses the command line and evaluates."""
    run(parse_config(config_parser("evaluate.py", __doc__, USAGE), arguments))


def run(config: RunConfig) -> None:
    """Joins the ranks, opens the data, scores it and renders the report."""
    # Imported after the config is known to be good: torch and its kin take seconds.
    from data_pipeline.reading import open_prepared, open_split
    from data_pipeline.value_counts import value_counts
    from rankmixer_dist.parallel.topology import failing_together, process_group
    from rankmixer_dist.report import render_report
    from rankmixer_dist.train.evaluate import evaluate
    from rankmixer_dist.train.slice_columns import needs_training_rows

    with process_group() as topology:
        ranks = {"rank": topology.rank, "world_size": topology.world_size}
        topology.share_of(config.eval.batch_size)
        with failing_together():
            known = config.train.splits if needs_training_rows(config) else ()
            manifest = open_prepared(config, list(dict.fromkeys([config.eval.split, *known])), **ranks)
        rows = open_split(
            config,
            manifest,
            config.eval.split,
            **ranks,
            batch_size=config.eval.batch_size,
            training=False,
            pin_memory=topology.device.type == "cuda",
        )
        base_rates = [manifest.base_rate(config.data.statistics_of, task) for task in config.features.tasks]
        result = evaluate(
            config,
            topology,
            rows,
            numerics=manifest.numerics,
            base_rates=base_rates,
            count_values=partial(value_counts, config.data.prepared, manifest, **ranks),
        )
        if result is not None:
            show(result)
            print(f"report: {render_report(config.run_dir)}")


def show(result: dict[str, Any]) -> None:
    """Prints the figures of every task, beside the best reachable ones where they are known."""
    table = Table(title=f"{result['split']}: {result['rows']:,} rows, {result['checkpoint']}")
    for column in (
        "task",
        "AUC",
        "best reachable",
        "gap",
        "UAUC",
        "best UAUC",
        "PR-AUC",
        "logloss",
        "NE",
        "calibration",
    ):
        table.add_column(column, justify="left" if column == "task" else "right")
    for task, figures in result["tasks"].items():
        best = figures.get("reachable", {"auc": None, "uauc": None})
        gap = None if None in (best["auc"], figures["auc"]) else best["auc"] - figures["auc"]
        values = (figures["auc"], best["auc"], gap, figures["uauc"], best["uauc"])
        values += (figures["pr_auc"], figures["logloss"], figures["ne"], figures["calibration"])
        table.add_row(task, *map(_four_decimals, values))
    console = Console(width=120)
    console.print(table)
    for column, values in result.get("slices", {}).items():
        console.print(slice_table(column, values, tasks=list(result["tasks"])))
        console.print(f"{column}: {result['slice_legends'][column]}\n", soft_wrap=True)
    routing = result.get("routing")
    if routing is not None:
        gaps = [f"{task} {path['served_gap']:+.2%}" for task, path in routing.get("trained_path", {}).items()]
        apart = f"; logloss as served against as trained: {', '.join(gaps)}" if gaps else ""
        console.print(f"experts: {routing['active_ratio']:.1%} active, {routing['dead_experts']} never used{apart}")


def slice_table(column: str, values: dict[str, Any], *, tasks: list[str]) -> Table:
    """AUC and UAUC of every task for each value of a column; of many values, those with the most rows."""
    shown = sorted(values, key=lambda value: -values[value]["rows"])[:MAX_SHOWN]
    hidden = len(values) - len(shown)
    more = f"; {hidden} more values in eval.json" if hidden else ""
    table = Table(title=f"by {column}: AUC / UAUC{more}")
    table.add_column(column, no_wrap=True)
    for name in ("rows", *tasks):
        table.add_column(name, justify="right")
    for value in (value for value in values if value in shown):
        figures = [values[value]["tasks"].get(task, {}) for task in tasks]
        cells = [" / ".join(_four_decimals(each.get(name)) for name in ("auc", "uauc")) for each in figures]
        table.add_row(value, f"{values[value]['rows']:,}", *cells)
    return table


def _four_decimals(value: float | None) -> str:
    return "–" if value is None else f"{value:.4f}"


if __name__ == "__main__":
    run_verb(main)
