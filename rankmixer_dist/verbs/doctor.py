"""Checks this machine and what is installed on it, and says how to mend what is wrong."""

import os

from rankmixer_dist.command_line import verb_parser
from rankmixer_dist.environment.check import Check
from rankmixer_dist.environment.doctor import examine, exit_code, show, to_json
from rankmixer_dist.errors import EXIT_USER_ERROR

USAGE = """\
Takes about ten seconds: it really loads torch, torchrec, deepspeed and ray. Verdicts: ok; warn: works, but slower or
not everywhere; bad: training would fail. Exit code 0 when nothing is bad, else 1; of several hosts 2.

Several hosts: with --peer on two, or on each
HEAD=host0 NODES=2 VERB=launch/doctor.py bash launch/cluster/torchrun_multinode.sh configs/<run>.yaml
"""


def main(arguments: list[str]) -> int:
    """Examines, prints and returns the exit code."""
    parser = verb_parser("doctor", __doc__, USAGE)
    parser.add_argument("config", nargs="?", help="YAML file of a run whose folders several hosts are to share")
    parser.add_argument(
        "--peer", metavar="HOST:PORT", help="on two hosts at once, the same on both: meets the other at a port of one"
    )
    parser.add_argument("--json", action="store_true", help="print JSON instead of a table")
    options = parser.parse_args(arguments)
    if options.peer is not None or os.environ.get("WORLD_SIZE", "1") != "1":
        checks, shown = _examine_hosts(options.config, options.peer)
        bad = EXIT_USER_ERROR  # which no launcher starts again
    else:
        checks, shown, bad = examine(), True, 1
    if shown and options.json:
        print(to_json(checks))
    elif shown:
        show(checks)
    return bad * exit_code(checks)


def _examine_hosts(config: str | None, peer: str | None) -> tuple[list[Check], bool]:
    from rankmixer_dist.config import load_config
    from rankmixer_dist.parallel.host_checks import examine_hosts, meet_peer

    run = None if config is None else load_config(config, [])
    if peer is not None:
        meet_peer(peer)
    return examine_hosts(*((None, None) if run is None else (run.runs, run.data.prepared)))
