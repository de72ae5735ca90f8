"""Scores a split with a run's newest checkpoint: AUC, UAUC and calibration of every task, and the report.

With --predictions it takes scores that are there already, a run's or anybody's, larger than memory, through Ray.
"""

import argparse
import os
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.table import Table

from rankmixer_dist.command_line import config_parser, console
from rankmixer_dist.config import RunConfig, load_config
from rankmixer_dist.errors import UserError
from rankmixer_dist.imports import large_imports

if TYPE_CHECKING:
    from data_pipeline.manifest import Manifest

MAX_SHOWN = 25
"""Values of a column to slice by that are printed."""

OF_REACHABLE = ("best reachable", "gap", "best UAUC")
"""Columns for data whose true probabilities are known."""

USAGE = """\
python launch/evaluate.py configs/quickstart.yaml
python launch/torchrun.py --nproc_per_node 2 launch/evaluate.py configs/quickstart.yaml eval.split=test
python launch/evaluate.py configs/quickstart.yaml "eval.slices=[user_activity,duration_bucket]"
python launch/evaluate.py --predictions runs/quickstart/predictions
python launch/evaluate.py --predictions scored.parquet --user uid --label click --score p_click --weight w

Writes eval.json, predictions/*.parquet and report.html into the run directory; with --predictions the figures alone.
"""

PREDICTIONS_OPTIONS: dict[str, tuple[type, str, str]] = {
    "user": (str, "COLUMN", "column of the user's id (default: user_id)"),
    "label": (str, "COLUMN", "column of 0 and 1, null or NaN where unknown (default: each label_<task>, else label)"),
    "score": (str, "COLUMN", "column of probabilities (default: each score_<task>, else score)"),
    "weight": (str, "COLUMN", "column of weights (default: every row counts 1)"),
    "memory": (float, "GiB", "resident memory that no worker exceeds (default: 4)"),
    "spill": (
        Path,
        "FOLDER",
        "where the rows are sorted, shared by all hosts (default: the folder of temporary files)",
    ),
    "out": (Path, "FILE", "where the figures go (default: PATH.eval.json, beside PATH)"),
}


def main(arguments: list[str]) -> None:
    """Parses the command line and evaluates."""
    parser = config_parser("evaluate", __doc__, USAGE, optional=True)
    of_files = parser.add_argument_group("scores that are there already, instead of a config")
    of_files.add_argument("--predictions", type=Path, metavar="PATH", help="a Parquet file, or a folder of them")
    for name, (kind, value, meaning) in PREDICTIONS_OPTIONS.items():
        of_files.add_argument(f"--{name}", type=kind, metavar=value, help=meaning)
    parsed = parser.parse_args(arguments)
    if parsed.predictions is None:
        stray = [f"--{name}" for name in PREDICTIONS_OPTIONS if getattr(parsed, name) is not None]
        if stray:
            raise UserError(f"{stray[0]} goes with --predictions PATH; with a config, change its keys")
        if parsed.config is None:
            raise UserError("name what to evaluate: the CONFIG of a run, or --predictions PATH")
        run(load_config(parsed.config, parsed.overrides))
    elif parsed.config is not None:
        raise UserError(f"give either a config ({parsed.config}) or --predictions, not both")
    else:
        run_predictions(parsed)


def run(config: RunConfig) -> None:
    """Joins the ranks, opens the data, scores it and renders the report."""
    manifest, splits = check(config)
    # Imported after all else is known to be good: torch and its kin take seconds.
    with large_imports():
        from data_pipeline.manifest import MANIFEST_NAME
        from data_pipeline.reading import open_prepared, open_split
        from data_pipeline.value_counts import value_counts
        from rankmixer_dist.parallel.topology import failing_together, process_group
        from rankmixer_dist.train.determinism import take_deterministic_ways
        from rankmixer_dist.train.evaluate import evaluate
        from rankmixer_dist.train.run_dir import in_runs_order
        from rankmixer_dist.train.same_start import require_same_start

    config = in_runs_order(config)
    if config.train.deterministic:
        take_deterministic_ways()
    with process_group() as topology:
        require_same_start(config, topology, manifest=config.data.prepared / MANIFEST_NAME)
        ranks = {"rank": topology.rank, "world_size": topology.world_size}
        topology.share_of(config.eval.batch_size)
        with failing_together():
            open_prepared(config, splits, **ranks, manifest=manifest)
        rows = open_split(
            config,
            manifest,
            config.eval.split,
            **ranks,
            batch_size=config.eval.batch_size,
            training=False,
            pin_memory=topology.device.type == "cuda",
        )
        result = evaluate(
            config,
            topology,
            rows,
            count_values=partial(
                value_counts, config.data.prepared, manifest, rank=topology.rank, world_size=topology.world_size
            ),
        )
        with failing_together():
            if result is not None:
                from rankmixer_dist.report.page import render_report  # which the other ranks have no use for

                show(result)
                print(f"report: {render_report(config.run_dir)}")


def check(config: RunConfig) -> tuple["Manifest", list[str]]:
    """Finds the mistakes that the config, the folders and the manifest alone can tell, without torch.

    Returns:
        The manifest of the data, and the splits that are read.
    """
    from data_pipeline.reading import find_prepared
    from rankmixer_dist.checkpoint.folder import named_checkpoint
    from rankmixer_dist.small_file import require_place
    from rankmixer_dist.train.meaning import require_same_meaning
    from rankmixer_dist.train.run_dir import in_runs_order, require_run

    require_run(config)
    require_place(config.run_dir, "runs")
    name = config.eval.checkpoint
    checkpoint = named_checkpoint(config.run_dir, name, key=f"eval.checkpoint {name}:")
    require_same_meaning(checkpoint, in_runs_order(config))
    training = config.train.splits if config.features.slices_ask_training(config.eval.slices) else ()
    splits = list(dict.fromkeys([config.eval.split, *training]))
    manifest = find_prepared(config, splits)
    if os.environ.get("RANK", "0") == "0":  # who renders the report
        from rankmixer_dist.report.inputs import read_training

        read_training(config.run_dir)
    return manifest, splits


def run_predictions(parsed: argparse.Namespace) -> None:
    """Takes the scores of files, prints the figures of every task and writes them beside."""
    from data_pipeline.predictions import (
        ColumnNames,
        evaluate_predictions,
        figures_path,
        find_predictions,
        write_figures,
    )

    if os.environ.get("WORLD_SIZE", "1") not in ("0", "1"):
        raise UserError("--predictions starts its own workers: call it with python, without a launcher")
    given = {name: value for name, value in vars(parsed).items() if value is not None}
    names = ColumnNames(**{name: given[name] for name in ("user", "label", "score", "weight") if name in given})
    predictions = find_predictions(parsed.predictions, names)
    out = figures_path(parsed.predictions, parsed.out)
    room = {name: given[key] for name, key in (("memory_gib", "memory"), ("spill", "spill")) if key in given}
    result = evaluate_predictions(predictions, **room)
    try:
        write_figures(out, predictions, result)
    finally:  # hours of work: whoever cannot have the file has the table
        show_predictions(parsed.predictions, result)
    print(f"figures: {out}")


def show_predictions(path: Path, result: dict[str, Any]) -> None:
    """Prints the figures of every task, in full however wide that is; the unweighted UAUC is in the file alone."""
    table = Table()
    columns = ("task", "rows", "AUC", "95 %", "UAUC", "users", "PR-AUC", "logloss", "NE", "calibration")
    for column in columns:
        table.add_column(column, justify="left" if column == "task" else "right", no_wrap=True)
    for task, figures in result["tasks"].items():
        low, high = figures["auc_ci95"]
        interval = "–" if low is None else f"{low:.4f}–{high:.4f}"
        names = ("auc", "uauc", "pr_auc", "logloss", "ne", "calibration")
        auc, uauc, *rest = (_four_decimals(figures[name]) for name in names)
        users = f"{figures['users_scored']:,}"
        table.add_row(task, f"{figures['rows']:,}", auc, interval, uauc, users, *rest)
    print(f"{path}: {result['rows']:,} rows")
    unbounded = console(width=1 << 16)
    console(width=unbounded.measure(table).maximum).print(table)
    for task, figures in result["tasks"].items():
        if figures["without_label"]:
            print(f"{task}: {figures['without_label']:,} rows without a label left out")
    print(f"memory: {result['worker_peak_bytes'] / 2**30:.2f} GiB at most in a worker")


def show(result: dict[str, Any]) -> None:
    """Prints the figures of every task, beside the best reachable ones where they are known."""
    table = Table(title=f"{result['split']}: {result['rows']:,} rows, {result['checkpoint']}")
    rows = {task: _beside_reachable(figures) for task, figures in result["tasks"].items()}
    known = any("reachable" in figures for figures in result["tasks"].values())
    columns = [name for name in next(iter(rows.values())) if known or name not in OF_REACHABLE]
    for name in ("task", *columns):
        table.add_column(name, justify="left" if name == "task" else "right")
    for task, figures in rows.items():
        table.add_row(task, *(_four_decimals(figures[name]) for name in columns))
    shown = console(width=120)
    shown.print(table)
    for column, values in result.get("slices", {}).items():
        shown.print(slice_table(column, values, tasks=list(result["tasks"])))
        shown.print(f"{column}: {result['slice_legends'][column]}\n", soft_wrap=True)
    routing = result.get("routing")
    if routing is not None:
        gaps = [f"{task} {path['served_gap']:+.2%}" for task, path in routing.get("trained_path", {}).items()]
        apart = f"; logloss as served against as trained: {', '.join(gaps)}" if gaps else ""
        shown.print(f"experts: {routing['active_ratio']:.1%} active, {routing['dead_experts']} never used{apart}")


def _beside_reachable(figures: dict[str, Any]) -> dict[str, float | None]:
    """A task's figures by the names of their columns."""
    best = figures.get("reachable", {"auc": None, "uauc": None})
    return {
        "AUC": figures["auc"],
        "best reachable": best["auc"],
        "gap": None if None in (best["auc"], figures["auc"]) else best["auc"] - figures["auc"],
        "UAUC": figures["uauc"],
        "best UAUC": best["uauc"],
        "PR-AUC": figures["pr_auc"],
        "logloss": figures["logloss"],
        "NE": figures["ne"],
        "calibration": figures["calibration"],
    }


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
