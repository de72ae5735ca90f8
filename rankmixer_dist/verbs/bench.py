"""Measures a fast path against a limit or a peer in the same run, and says on which device."""

import dataclasses
import importlib
import importlib.metadata
import json
import math
import platform
import subprocess
from pathlib import Path

from data_pipeline.reading import find_prepared
from rankmixer_dist.command_line import verb_parser
from rankmixer_dist.config import DTSIConfig, RunConfig, load_config
from rankmixer_dist.errors import UserError, nearest
from rankmixer_dist.small_file import require_place

WHAT = {
    "checkpoint": "rankmixer_100m",
    "dense": "rankmixer_100m",
    "evaluation": "quickstart",
    "loader": "quickstart",
    "metrics": "quickstart",
    "moe": "rankmixer_moe",
    "predictions": "quickstart",
    "roofline": "rankmixer_1b",
    "step": "quickstart",
}
"""What can be measured, and the config that it is measured with by default; roofline estimates, for a GPU it names."""

SIZES = {
    "evaluation": {"rows": 20_000_000, "users": 1_000_000, "tasks": 5},
    "metrics": {
        "rows": 10_000_000,
        "users": 1_000_000,
        "loop_users": 2000,
        "largest": 30_000_000,
    },
    "step": {"tables": 26, "table_rows": 100_000, "dim": 16, "numerics": 13, "rows": 2048, "steps": 20},
    "predictions": {"rows": 5_000_000, "users": 500_000, "check_rows": 1_000_000, "memory_mib": 4096},
}
"""Of evaluation: rows, at most so many users, and tasks. Of metrics: rows and users that all are compared on; users of
the loops' sample; rows of the last line of the growth table, which has ten rows a user. Of predictions: rows and users
in the files; rows of the small run whose figures have to be those of the state in memory; memory of a worker. Of step:
tables, their rows and width, numerics, rows of a rank's batch, steps of a round."""

ON_GPU = {"checkpoint", "dense", "moe"}
"""What is measured on the first GPU where there is one; the others are work of the CPU everywhere."""

ROOT = Path(__file__).parents[2]
PACKAGES = ("torch", "torchrec", "deepspeed", "ray", "pyarrow", "numpy", "scikit-learn")


def main(arguments: list[str]) -> None:
    """Parses the command line, measures, prints and writes the figures."""
    parser = verb_parser("bench", __doc__)
    parser.add_argument("--what", required=True, choices=sorted(WHAT), help="loader needs the config's prepared data")
    parser.add_argument(
        "--size",
        action="append",
        default=[],
        metavar="NAME=NUMBER",
        help="evaluation, metrics, predictions, step: rows, users, ...",
    )
    parser.add_argument("--json", type=Path, metavar="OUT", help="also write the figures to a file")
    parser.add_argument("--config", help="YAML file of a run; one of configs/ that fits by default")
    parser.add_argument("overrides", nargs="*", metavar="section.key=value", help="values to change in the config")
    parsed = parser.parse_args(arguments)
    path = parsed.config or ROOT / f"configs/{WHAT[parsed.what]}.yaml"
    if parsed.config is None and not path.exists():
        raise UserError(f"--what {parsed.what} takes {path.name} of the source tree, which is not here; give --config")
    config = load_config(path, parsed.overrides)
    chosen = sizes(parsed.size, SIZES.get(parsed.what, {}))
    check(parsed.what, config, parsed.json)
    # Imported after all else is known to be good: torch and its kin take seconds.
    import torch

    from rankmixer_dist.benchmarks.device import in_words, measured_device

    device = in_words(measured_device() if parsed.what in ON_GPU else torch.device("cpu"))
    print(f"{'computed' if parsed.what == 'roofline' else 'measured'} on: {device}", flush=True)
    figures = importlib.import_module(f"rankmixer_dist.benchmarks.{parsed.what}").measure(config, **chosen)
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
            "device": device,
            "machine": platform.processor() or platform.machine(),
            "commit": _commit(),
        }
        parsed.json.write_text(json.dumps(about, indent=1) + "\n")


def check(what: str, config: RunConfig, out: Path | None) -> None:
    """Finds the mistakes that the command line, the config and the manifest alone can tell.

    Raises:
        UserError: the data is missing, the model has no DTSI experts, or the figures cannot be written.
    """
    if what == "loader":
        find_prepared(config, config.train.splits[:1])
    if what == "moe" and not isinstance(config.model.mixture, DTSIConfig):
        raise UserError("--what moe measures DTSI experts; give a config with model.rankmixer.moe.kind dtsi")
    if out is not None:
        require_place(out.parent, "--json")
        if out.is_dir():
            raise UserError(f"--json {out}: is a folder; name a file")


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
    """The commit that was measured, with a mark when the tree has changes; None outside a git checkout of it."""
    if not (ROOT / ".git").exists():  # an installed copy, which may lie in the checkout of another project
        return None
    command = ["git", "describe", "--always", "--dirty"]
    described = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    return described.stdout.strip() or None
