"""Prepares the data of a run: raw logs to Parquet shards and a manifest."""

import time
from datetime import UTC, datetime

from rich.table import Table

from data_pipeline.manifest import Manifest
from data_pipeline.preprocess import preprocess
from rankmixer_dist.command_line import config_parser, console
from rankmixer_dist.config import load_config
from rankmixer_dist.small_file import require_place

USAGE = """\
python launch/preprocess.py configs/quickstart.yaml
python launch/preprocess.py configs/quickstart.yaml source.seed=2 source.path=data/b/raw data.prepared=data/b/prepared
python launch/preprocess.py configs/kuairand_pure.yaml data.on_bad_row=set_aside data.job=serial
RAY_ADDRESS=head:6379 python launch/preprocess.py configs/quickstart.yaml    (on a running Ray cluster)

Reads the raw logs of `source` (synthetic ones are written first), makes their columns the features and labels of
`features`, sorts all rows by time, drops exact duplicates, cuts `data.splits` and writes Parquet shards and
manifest.json into data.prepared. A folder that is up to date is left alone; one that holds anything else is never
overwritten. Rows that did not make it lie in set_aside/, one file a reason.
"""


def main(arguments: list[str]) -> None:
    """Parses the command line, prepares the data and says what came of it."""
    parser = config_parser("preprocess", __doc__, USAGE)
    parser.add_argument("--quiet", action="store_true", help="warnings and the summary only")
    options = parser.parse_intermixed_args(arguments)
    config = load_config(options.config, options.overrides)
    require_place(config.data.prepared.parent, "data.prepared")
    started = time.monotonic()
    manifest = preprocess(config, progress=not options.quiet)
    show(manifest)
    print(f"{config.data.prepared}: ready after {time.monotonic() - started:.1f} s")


def show(manifest: Manifest) -> None:
    """Prints the rows and base rates of every split, the numerics, and what was set aside and why."""
    shown = console(soft_wrap=True)
    rows = Table("split", title=f"{manifest.source}: {manifest.raw_rows:,} raw rows")
    grouped = ("rows a group",) if manifest.group is not None else ()
    for column in ("rows", "shards", *grouped, "first (UTC)", "last (UTC)"):
        rows.add_column(column, justify="right")
    for split, shards in manifest.splits.items():
        times = [_minute(time) for time in manifest.span(split)] if shards else []
        shared = [f"{manifest.rows_per_group(split):.2f}"] if grouped and shards else []
        rows.add_row(split, f"{manifest.rows(split):,}", str(len(shards)), *shared, *times)
    rates = Table("base rate")
    for split in manifest.splits:
        rates.add_column(split, justify="right")
    for task in next(shards[0] for shards in manifest.splits.values() if shards).positives:
        rates.add_row(task, *(f"{manifest.base_rate(split, task):.2%}" for split in manifest.splits))
    numerics = Table("numeric")
    for column in ("present", "mean", "std"):
        numerics.add_column(column, justify="right")
    for name, values in manifest.numerics.items():
        numerics.add_row(name, f"{values.count:,}", f"{values.mean:.4g}", f"{values.std:.4g}")
    shown.print(rows, rates, *([numerics] if manifest.numerics else []))
    for reason, count in manifest.set_aside.items():
        shown.print(f"set aside: {count:,} {reason}")
    for note in manifest.notes:
        shown.print(f"note: {note}")


def _minute(timestamp_ms: int) -> str:
    return f"{datetime.fromtimestamp(timestamp_ms / 1000, UTC):%Y-%m-%d %H:%M}"
