"""Checks this machine and what is installed on it, and says how to mend what is wrong."""

import argparse
import sys
from pathlib import Path

# The doctor has to work where the project itself is not installed, or where another copy of it is.
sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from rankmixer_dist.command_line import run_verb
from rankmixer_dist.environment.doctor import examine, exit_code, show, to_json


def main(arguments: list[str]) -> int:
    """Examines, prints and returns the exit code."""
    parser = argparse.ArgumentParser(
        prog="python launch/doctor.py",
        description=f"{__doc__} Takes about ten seconds: it really loads torch, torchrec, deepspeed and ray.",
        epilog="Verdicts: ok; warn: works, but slower or not everywhere; bad: training would fail. "
        "Exit code 0 when nothing is bad, else 1.",
    )
    parser.add_argument("--json", action="store_true", help="print JSON instead of a table")
    options = parser.parse_args(arguments)
    checks = examine()
    if options.json:
        print(to_json(checks))
    else:
        show(checks)
    return exit_code(checks)


if __name__ == "__main__":
    run_verb(main)
