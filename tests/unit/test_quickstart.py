"""The quickstart's ranks on machines of any number of GPUs, with a stand-in for Python that notes its calls."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
STAND_IN = """#!/usr/bin/env bash
case "$1 ${2:-}" in
    "- "*) exec "$REAL_PYTHON" "$@" ;;
    "-c import torch"*) echo "$GPUS" ;;
    *) echo "called${CUDA_VISIBLE_DEVICES+ with hidden GPUs}: $*" ;;
esac
"""
EXPERTS = "4 CUDA ranks instead of 6, which cannot share batches of 60 and 60 rows evenly in groups of 4"


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    """A small copy of the repository, installed, for CUDA."""
    for folder in ("launch", ".venv/bin"):
        (tmp_path / folder).mkdir(parents=True)
    shutil.copytree(ROOT / "configs", tmp_path / "configs")
    shutil.copy(ROOT / "launch" / "quickstart.sh", tmp_path / "launch")
    (tmp_path / "launch" / "install.sh").write_text("")
    (tmp_path / ".venv" / "install.stamp").write_text(f"Python 3.11, cuda, {tmp_path}\npins\n")
    python = tmp_path / ".venv" / "bin" / "python"
    python.write_text(STAND_IN)
    python.chmod(0o755)
    return tmp_path


def quickstart(tree: Path, gpus: int, *changes: str) -> str:
    env = {name: value for name, value in os.environ.items() if name != "CUDA_VISIBLE_DEVICES"}
    env |= {"GPUS": str(gpus), "REAL_PYTHON": sys.executable, "PYTHONPATH": str(ROOT)}
    command = ["bash", "launch/quickstart.sh", *changes]
    ended = subprocess.run(command, cwd=tree, env=env, capture_output=True, text=True, timeout=100, check=False)
    assert (ended.returncode, ended.stderr) == (0, ""), ended
    return ended.stdout


@pytest.mark.parametrize(
    ("gpus", "changes", "ranks", "said"),
    [
        (1, (), 1, None),
        (3, (), 2, "2 CUDA ranks instead of 3, which cannot share batches of 512 and 4096 rows evenly"),
        (5, (), 4, "4 CUDA ranks instead of 5"),
        (6, ("loader.batch_size=510", "eval.batch_size=600"), 6, None),
        (7, ("eval.batch_size=14",), 2, "2 CUDA ranks instead of 7, which cannot share batches of 512 and 14 rows"),
        (16, (), 8, None),
        (6, ("loader.batch_size=60", "eval.batch_size=60", "parallel.expert_size=4"), 4, EXPERTS),
        (0, (), 2, None),
        (0, ("loader.batch_size=33",), 1, "1 CPU ranks instead of 2"),
    ],
)
def test_as_many_ranks_as_share_the_batches(
    tree: Path, gpus: int, changes: tuple[str, ...], ranks: int, said: str | None
) -> None:
    out = quickstart(tree, gpus, *changes)
    hidden = " with hidden GPUs" if gpus == 0 else ""
    for verb in ("train", "evaluate"):
        given = " ".join(["configs/quickstart.yaml", *changes])
        assert f"called{hidden}: launch/torchrun.py --nproc_per_node {ranks} launch/{verb}.py {given}\n" in out
    told = [line for line in out.splitlines() if "instead of" in line]
    assert len(told) == (said is not None)
    assert said is None or told[0].startswith(f"quickstart: {said}")
