#!/usr/bin/env python
"""Tries a machine that has torch and pytest and nothing else that this project needs.

    python tests/cuda/alone.py --json gpu.json

Compares every layer and backbone with its reference on the GPU, in fp32 and bf16, and measures the 100M and the 1B
shape against a GEMM of the same run. Without a GPU both happen in small on the CPU, and that is said.
"""

import argparse
import dataclasses
import json
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT))

from rankmixer_dist.benchmarks.dense import PUBLISHED, measured, on_gpu, published  # noqa: E402
from rankmixer_dist.benchmarks.device import in_words, measured_device  # noqa: E402
from rankmixer_dist.benchmarks.figure import Figure  # noqa: E402

LAYERS = ("tests/numerics", "tests/cuda/test_exchange.py")
TRIAL = published("RankMixer-trial", 4, 64, 128)
"""What is measured where there is no GPU."""


class Errors:
    """A pytest plugin: the largest error of each test function by precision, and how its tests ended."""

    def __init__(self) -> None:
        self.rows: dict[tuple[str, str], dict[str, Any]] = {}
        self.outcomes: dict[str, int] = {}
        self.failed: list[str] = []

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        """Takes up what the `matches_reference` of tests/numerics told."""
        if report.when == "call" or report.outcome == "skipped":
            self.outcomes[report.outcome] = self.outcomes.get(report.outcome, 0) + 1
        if report.outcome == "failed":
            self.failed.append(report.nodeid)
        if report.when != "call":
            return
        name = Path(report.location[0]).stem.removeprefix("test_") + ": " + report.location[2].partition("[")[0]
        for dtype, told in report.user_properties:
            if isinstance(told, dict) and "error" in told:
                row = self.rows.setdefault((name, dtype), {"error": 0.0, "limit": told["limit"], "cases": 0})
                row["cases"] += 1
                if told["error"] >= row["error"]:
                    row |= told


def main(arguments: list[str]) -> int:
    """Runs both, prints and writes what came out; 1 if a layer is off."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", type=Path, metavar="OUT", help="also write everything to a file")
    parser.add_argument("--only", nargs="*", default=LAYERS, metavar="TESTS", help="instead of all layers")
    parsed = parser.parse_args(arguments)
    device = measured_device()
    on_cuda = device.type == "cuda"
    print(f"device: {in_words(device)}; torch {torch.__version__}", flush=True)
    if not on_cuda:
        print("torch finds no GPU: layers are compared on the CPU, and a small shape is measured", flush=True)
    errors = Errors()
    # The tests' shared fixtures need more than torch; the layers' tests do without them.
    options = ["-q", "--no-header", "-p", "no:cacheprovider", "--confcutdir", str(ROOT / "tests" / "numerics")]
    options += ["--rootdir", str(ROOT), "-c", str(ROOT / "pyproject.toml"), "-m", "cuda" if on_cuda else "not cuda"]
    code = pytest.main([*options, *(str(ROOT / test) for test in parsed.only)], plugins=[errors])
    show_errors(errors)
    shapes = PUBLISHED if on_cuda else (TRIAL,)
    figures = [figure for shape in shapes for figure in speeds(shape, device)]
    if parsed.json is not None:
        found = {
            "device": in_words(device),
            "torch": torch.__version__,
            "layers": [{"layer": name, "dtype": dtype, **row} for (name, dtype), row in errors.rows.items()],
            "outcomes": errors.outcomes,
            "failed": errors.failed,
            "figures": [dataclasses.asdict(figure) for figure in figures],
        }
        parsed.json.write_text(json.dumps(found, indent=1) + "\n")
    return int(code)


def speeds(shape: Any, device: torch.device) -> list[Figure]:
    """Measures and prints."""
    figures = on_gpu(shape, device) if device.type == "cuda" else measured(shape, "fp32", device, rows=32, repeats=3)
    for figure in figures:
        ratio = figure.value / figure.reference
        print(
            f"{figure.name}: {figure.value:,.4g} {figure.unit}; {figure.against}: {figure.reference:,.4g}; "
            f"ratio {ratio:.3f}",
            flush=True,
        )
    return figures


def show_errors(errors: Errors) -> None:
    """One line a test function and precision."""
    print(f"\n{'layer against its reference':<76} {'dtype':<9} {'cases':>5} {'error':>9} {'limit':>9}")
    for (name, dtype), row in sorted(errors.rows.items()):
        print(f"{name[:76]:<76} {dtype:<9} {row['cases']:>5} {row['error']:>9.2e} {row['limit']:>9.2e}")
    ended = ", ".join(f"{count:,} {outcome}" for outcome, count in sorted(errors.outcomes.items()))
    print(f"tests: {ended or 'none'}\n", flush=True)
    for name in errors.failed:
        print(f"failed: {name}", flush=True)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
