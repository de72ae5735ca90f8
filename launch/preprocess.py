"""Prepares the data of a run: raw logs to Parquet shards and a manifest."""

import argparse
import time

from rich.console import Console
from rich.table import Table

from data_pipeline.manifest import Manifest
from data_pipeline.preprocess import preprocess
from rankmixer_dist.command_line import run_verb
from rankmixer_dist.config import load_config


def main(arguments: list[str]) -> None:
    """The verb."""
    parser = argparse.ArgumentParser(
        prog="preprocess.py",
        description="Prepares the data that a run trains on: reads the raw logs of `source`, turns their columns into "
        "the features and labels of `features`, sorts all rows by time, drops exact duplicates, cuts the splits of "
        "`data.splits` and writes Parquet shards and manifest.json into `data.prepared`. Raw synthetic logs are "
        "written first. A folder that is up to date is left alone; one that holds anything else is never overwritten.",
        epilog="examples:\n"
        "  python launch/preprocess.py configs/quickstart.yaml\n"
        "  python launch/preprocess.py configs/quickstart.yaml source.rows=30000 source.path=data/few/raw "
        "data.prepared=data/few/prepared\n"
        "  python launch/preprocess.py configs/kuairand_pure.yaml data.on_bad_row=set_aside data.job=serial",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("config", help="YAML file of the run")
    parser.add_argument("overrides", nargs="*", metavar="section.key=value", help="values that replace the file's")
    parser.add_argument("--quiet", action="store_true", help="warnings and the summary only")
    options = parser.parse_args(arguments)
    config = load_config(options.config, options.overrides)
    started = time.monotonic()
    manifest = preprocess(config, progress=not options.quiet)
    summary = _summary(manifest)
    console = Console(highlight=False)
    console.print(summary)
    for note in manifest.notes:
        console.print(f"note: {note}", markup=False)
    console.print(f"{config.data.prepared}: ready after {time.monotonic() - started:.1f} s", markup=False)


def _summary(manifest: Manifest) -> Table:
    tasks = list(next(iter(next(iter(manifest.splits.values())))).positives)
    table = Table("rows", "count", "shards", *tasks, title=f"{manifest.raw_rows:,} raw rows of {manifest.source}")
    for split, shards in manifest.splits.items():
        rates = [f"{manifest.base_rate(split, task):.2%}" for task in tasks]
        table.add_row(split, f"{manifest.rows(split):,}", str(len(shards)), *rates)
    for reason, rows in manifest.set_aside.items():
        table.add_row(f"set aside: {reason}", f"{rows:,}")
    return table


if __name__ == "__main__":
    run_verb(main)
