"""The metrics measurement in small, and the sizes that bench.py takes."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from rankmixer_dist.errors import UserError
from rankmixer_dist.verbs import bench

ROOT = Path(__file__).resolve().parents[2]


def test_metrics_are_measured_beside_their_peers(tmp_path: Path) -> None:
    sizes = {"rows": 6000, "users": 600, "loop_users": 10, "largest": 6000}
    arguments = [word for name, number in sizes.items() for word in ("--size", f"{name}={number}")]
    # That all states and peers find the same AUC and UAUC is asserted by the measurement itself.
    command = [sys.executable, "launch/bench.py", "--what", "metrics", "--json", str(tmp_path / "figures.json")]
    run = subprocess.run([*command, *arguments], cwd=ROOT, capture_output=True, text=True, check=False)
    assert run.returncode == 0, run.stderr
    found = json.loads((tmp_path / "figures.json").read_text())
    figures = found["figures"]
    assert found["device"].startswith("CPU ")
    said = run.stdout.splitlines()
    assert said[0] == f"measured on: {found['device']}"
    assert all(figure["value"] > 0 and figure["reference"] > 0 for figure in figures if figure["unit"] == "s")
    timed = [figure["name"] for figure in figures if figure["unit"] == "s"]
    assert timed == ["AUC", "UAUC", "UAUC", "UAUC"]
    table = [line.split()[:2] for line in said[2:10]]
    assert table == [[rows, name] for rows in ("200", "600", "2,000", "6,000") for name in ("AUC", "UAUC")]


def test_evaluation_on_two_ranks_is_measured_beside_one_process(tmp_path: Path) -> None:
    sizes = ["--size", "rows=50000", "--size", "users=900", "--size", "tasks=2"]
    # That the ranks and the state in memory find the same bits is asserted by the measurement itself.
    command = [sys.executable, "launch/bench.py", "--what", "evaluation", "--json", str(tmp_path / "figures.json")]
    run = subprocess.run([*command, *sizes], cwd=ROOT, capture_output=True, text=True, check=False)
    assert run.returncode == 0, run.stderr
    figures = json.loads((tmp_path / "figures.json").read_text())["figures"]
    assert [figure["unit"] for figure in figures] == ["s", "s", "MiB", "MiB", "MiB"]


@pytest.mark.ray
def test_predictions_are_measured_beside_one_process(tmp_path: Path) -> None:
    sizes = {"rows": 30_000, "users": 3000, "check_rows": 5000}
    arguments = [word for name, number in sizes.items() for word in ("--size", f"{name}={number}")]
    # That Ray, one process and the state in memory find the same bits is asserted by the measurement itself.
    command = [sys.executable, "launch/bench.py", "--what", "predictions", "--json", str(tmp_path / "figures.json")]
    run = subprocess.run([*command, *arguments], cwd=ROOT, capture_output=True, text=True, check=False)
    assert run.returncode == 0, run.stderr
    figures = json.loads((tmp_path / "figures.json").read_text())["figures"]
    assert [figure["unit"] for figure in figures] == ["s", "rows/s", "s", "s", "MiB"]
    assert figures[-1]["value"] < figures[-1]["reference"] == 4096


@pytest.mark.thorough
def test_a_step_is_measured_beside_a_plain_loop(tmp_path: Path) -> None:
    sizes = {"tables": 3, "table_rows": 50, "dim": 4, "numerics": 2, "rows": 8, "steps": 2}
    arguments = [word for name, number in sizes.items() for word in ("--size", f"{name}={number}")]
    command = [sys.executable, "launch/bench.py", "--what", "step", "--json", str(tmp_path / "figures.json")]
    run = subprocess.run([*command, *arguments], cwd=ROOT, capture_output=True, text=True, check=False)
    assert run.returncode == 0, run.stderr
    figures = json.loads((tmp_path / "figures.json").read_text())["figures"]
    assert [figure["name"] for figure in figures] == [
        f"{what}, {backbone}, {ranks}"
        for backbone in ("dlrm_mlp", "dcn_v2")
        for ranks in ("1 rank", "2 ranks")
        for what in ("CPU", "speed")
    ]
    assert all(figure["value"] > 0 and figure["reference"] > 0 for figure in figures)


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ("row=5", r"^--size row=5: unknown size; known: rows, users; did you mean 'rows'\?$"),
        ("rows=0", r"^--size rows=0: expected a whole number above 0, as in rows=100$"),
        ("rows", r"^--size rows: expected a whole number above 0, as in rows=100$"),
    ],
)
def test_sizes_that_are_not_known_are_one_line(given: str, message: str) -> None:
    assert bench.sizes(["users=7"], {"rows": 100, "users": 10}) == {"rows": 100, "users": 7}
    with pytest.raises(UserError, match=message):
        bench.sizes([given], {"rows": 100, "users": 10})
    with pytest.raises(UserError, match=r"unknown size; known: this measurement has none$"):
        bench.sizes([given], {})
