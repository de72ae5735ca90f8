"""A run's disk that is full: what `evaluate.py` left there before stands, and a start with space goes on."""

from pathlib import Path

import pytest

from tests.full_disk import small_disk
from tests.integration.test_bad_input import refuse


@pytest.mark.thorough
def test_evaluating_a_run(launch, small_config: Path, tmp_path: Path) -> None:
    with small_disk(tmp_path / "disk", megabytes=60) as disk:
        overrides = ("name=full", f"runs={disk.folder}", "train.max_steps=2")
        run_dir = disk.folder / "full"
        for script in ("train", "evaluate"):
            assert launch.python(f"launch/{script}.py", str(small_config), *overrides).returncode == 0
        results = [run_dir / "eval.json", run_dir / "report.html", *(run_dir / "predictions").iterdir()]
        before = {path: path.read_bytes() for path in results}
        names = {path.name for path in run_dir.iterdir()}
        for free in (0, 40_000):
            disk.fill(leave=free)
            refuse(launch.python("launch/evaluate.py", str(small_config), *overrides), "No space left on device")
            assert {path: path.read_bytes() for path in results} == before
            assert {path.name for path in run_dir.iterdir()} == names
        disk.free()
        assert launch.python("launch/evaluate.py", str(small_config), *overrides).returncode == 0
        assert (run_dir / "eval.json").read_bytes() == before[run_dir / "eval.json"]
