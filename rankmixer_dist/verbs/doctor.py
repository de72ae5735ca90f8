"""Checks this machine and what is installed on it, and says how to mend what is wrong."""

import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

from rankmixer_dist.command_line import verb_parser
from rankmixer_dist.environment.check import REINSTALL, Check, describe, gibibytes
from rankmixer_dist.environment.doctor import examine, exit_code, show, to_json
from rankmixer_dist.errors import EXIT_USER_ERROR, UserError

if TYPE_CHECKING:
    from rankmixer_dist.config import RunConfig

USAGE = """\
Takes about ten seconds: it really loads torch, torchrec, deepspeed and ray. Verdicts: ok; warn: works, but slower or
not everywhere; bad: training would fail. Exit code 0 when nothing is bad, else 1; of several hosts 2. With a config
also what that names: the folder for its runs, the room there, and the prepared data.

Several hosts: with --peer on two, or on each
HEAD=host0 NODES=2 VERB=launch/doctor.py bash launch/cluster/torchrun_multinode.sh configs/<run>.yaml
"""


def main(arguments: list[str]) -> int:
    """Examines, prints and returns the exit code."""
    parser = verb_parser("doctor", __doc__, USAGE)
    parser.add_argument("config", nargs="?", help="YAML file of a run; of several hosts, they are to share its folders")
    parser.add_argument("overrides", nargs="*", metavar="section.key=value", help="values to change in the config")
    parser.add_argument(
        "--peer", metavar="HOST:PORT", help="on two hosts at once, the same on both: meets the other at a port of one"
    )
    parser.add_argument("--json", action="store_true", help="print JSON instead of a table")
    options = parser.parse_args(arguments)
    if options.peer is not None or os.environ.get("WORLD_SIZE", "1") != "1":
        checks, shown = _examine_hosts(options.config, options.overrides, options.peer)
        bad = EXIT_USER_ERROR  # which no launcher starts again
    else:
        checks, shown, bad = examine(), True, 1
        if options.config is not None:
            checks += examine_run(options.config, options.overrides)
    if shown and options.json:
        print(to_json(checks))
    elif shown:
        show(checks)
    return bad * exit_code(checks)


def examine_run(path: str, overrides: list[str]) -> list[Check]:
    """What a config names, looked at without touching anything."""
    try:
        from rankmixer_dist.config import load_config

        config = load_config(path, overrides)
    except UserError as error:
        return [Check("config", str(error), "bad", "mend the config")]
    except ImportError as error:
        return [Check("config", describe(error), "bad", REINSTALL)]
    checks = (("runs", _runs, "set `runs` to another folder"), ("data", _data, "see launch/preprocess.py"))
    found = [Check("config", f"{path}: the run {config.name!r}")]
    return [*found, *(_unless_raised(name, check, config, mend) for name, check, mend in checks)]


def _unless_raised(name: str, check: "Callable[[RunConfig], Check]", config: "RunConfig", mend: str) -> Check:
    try:
        return check(config)
    except UserError as error:
        return Check(name, str(error), "bad", mend)
    except (ImportError, OSError) as error:
        return Check(name, describe(error), "bad", REINSTALL if isinstance(error, ImportError) else mend)


def _runs(config: "RunConfig") -> Check:
    """Whether the run's folder can be made, and its checkpoints have room: those kept, and the one being written."""
    from rankmixer_dist.checkpoint.folder import checkpoints
    from rankmixer_dist.cost.memory import moments_of
    from rankmixer_dist.small_file import require_place
    from rankmixer_dist.train.build import weightless_model

    require_place(config.run_dir, "runs")
    there = next(path for path in (config.run_dir, *config.run_dir.absolute().parents) if path.exists())
    free = shutil.disk_usage(there).free
    dense = sum(weight.numel() for weight in weightless_model(config).parameters())
    tables = sum(table.bytes for table in config.features.tables.values())
    each = tables + 4 * dense * (1 + moments_of(config.dense.optimizer))
    kept = config.checkpoint.keep + (config.checkpoint.best is not None)
    more = max(kept - len(checkpoints(config.run_dir)), 0) + 1
    found = f"{config.run_dir}: {gibibytes(free)} free; {more} more checkpoints take {gibibytes(more * each)}"
    if free < more * each:
        return Check("runs", found, "bad", "free some space, or set `runs` to a folder on a larger disk")
    return Check("runs", found)


def _data(config: "RunConfig") -> Check:
    from data_pipeline.manifest import MANIFEST_NAME
    from data_pipeline.reading import find_prepared

    prepared = config.data.prepared
    if not Path(prepared, MANIFEST_NAME).exists():
        return Check("data", f"{prepared}: nothing is prepared", "warn", "prepare it first: launch/preprocess.py")
    splits = dict.fromkeys([*config.train.splits, config.eval.split])
    manifest = find_prepared(config, [*splits])
    return Check("data", f"{prepared}: " + ", ".join(f"{manifest.rows(one):,} rows of {one!r}" for one in splits))


def _examine_hosts(config: str | None, overrides: list[str], peer: str | None) -> tuple[list[Check], bool]:
    from rankmixer_dist.config import load_config
    from rankmixer_dist.parallel.host_checks import examine_hosts, meet_peer

    run = None if config is None else load_config(config, overrides)
    if peer is not None:
        meet_peer(peer)
    return examine_hosts(*((None, None) if run is None else (run.runs, run.data.prepared)))
