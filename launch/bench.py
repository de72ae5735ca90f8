#!/usr/bin/env python
"""Measures a fast path against a limit or a peer in the same run."""

import argparse
import dataclasses
import importlib
import importlib.metadata
import json
import math
import platform
import subprocess
from pathlib import Path

from rankmixer_dist.command_line import run_verb
from rankmixer_dist.config import load_config
from rankmixer_dist.errors import UserError, nearest

WHAT = {
    "checkpoint": "rankmixer_100m",
    "dense": "rankmixer_100m",
    "loader": "quickstart",
    "metrics": "quickstart",
    "moe": "rankmixer_moe",
    "predictions": "quickstart",
}
"""What can be measured, and the config that it is measured with by default."""

ROOT = Path(__file__).parents[1]
PACKAGES = ("torch", "torchrec", "deepspeed", "ray", "pyarrow", "numpy", "scikit-learn")


def main(arguments: list[str]) -> None:
    """Parses the command line, measures, prints and writes the figures."""
    parser = argparse.ArgumentParser(prog="bench.py", description=__doc__)
    parser.add_argument("--what", required=True, choices=sorted(WHAT), help="loader needs the config's prepared data")
    parser.add_argument(
        "--size", action="append", default=[], metavar="NAME=NUMBER", help="metrics, predictions: rows, users, ..."
    )
    parser.add_argument("--json", type=Path, metavar="OUT", help="also write the figures to a file")
    parser.add_argument("--config", help="YAML file of a run; one of configs/ that fits by default")
    parser.add_argument("overrides", nargs="*", metavar="section.key=value", help="values to change in the config")
    parsed = parser.parse_args(arguments)
    config = load_config(parsed.config or ROOT / f"configs/{WHAT[parsed.what]}.yaml", parsed.overrides)
    module = importlib.import_module(f"benchmarks.{parsed.what}")
    figures = module.measure(config, **sizes(parsed.size, getattr(module, "SIZES", {})))
    for figure in figures:
        mine, other = (f"{value:,.3g} {figure.unit}" for value in (figure.value, figure.reference))
        # What is measured in small may be too small for the clock.
        ratio = figure.value / figure.reference if figure.reference else math.nan
        print(f"{figure.name}: {mine}; {figure.against}: {other}; ratio {ratio:.3f}")
    if parsed.json is not None:
        about = {
            "what": parsed.what,
            "figures": [dataclasses.asdict(figure) for figure in figures],
            "versions": {name: importlib.metadata.version(name) for name in PACKAGES},
            "machine": platform.processor() or platform.machine(),
            "commit": _commit(),
        }
        parsed.json.write_text(json.dumps(about, indent=1) + "\n")


def sizes(given: list[str], defaults: dict[str, int]) -> dict[str, int]:
    """The sizes of a measurement: its defaults, changed by `name=number` from the command line.

    Raises:
        UserError: an unknown name, or no whole number above 0.
    """
    chosen = dict(defaults)
    for text in given:
        name, _, number = text.partition("=")
        if name not in defaults:
            known = ", ".join(defaults) or "this measurement has none"
            raise UserError(f"--size {text}: unknown size; known: {known}{nearest(name, defaults)}")
        if not number.isdecimal() or int(number) == 0:
            raise UserError(f"--size {text}: expected a whole number above 0, as in {name}={defaults[name]}")
        chosen[name] = int(number)
    return chosen


def _commit() -> str | None:
    """The commit that was measured, with a mark when the tree has changes; None outside a git checkout."""
    command = ["git", "describe", "--always", "--dirty"]
    described = subprocess.run(command, cwd=Path(__file__).parent, capture_output=True, text=True, check=False)
    return described.stdout.strip() or None


if __name__ == "__main__":
    run_verb(main)
