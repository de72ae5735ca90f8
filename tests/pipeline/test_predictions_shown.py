"""What `evaluate.py --predictions` prints: every figure in full, whatever the names, and not before it is written."""

import json
from contextlib import redirect_stdout
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from rankmixer_dist.verbs import evaluate

ROOT = Path(__file__).parents[2]
MARKUP = "[/b]like[red]"


def result(rows: int, **tasks: int) -> dict[str, Any]:
    """Figures of so many rows and, by task, of so many users."""
    names = ("auc", "uauc", "uauc_unweighted", "pr_auc", "logloss", "ne", "calibration")
    figures = dict.fromkeys(names, 0.12345) | {"auc_ci95": [0.1, 0.2], "without_label": 0, "rows": rows}
    return {
        "rows": rows,
        "tasks": {task: figures | {"users_scored": users} for task, users in tasks.items()},
        "worker_peak_bytes": 2**30,
    }


@pytest.mark.parametrize("rows", [100_000_000, 12_345_678_901_234])
def test_no_number_is_cut(rows: int, capsys: pytest.CaptureFixture[str]) -> None:
    name = "a_task_with_quite_a_long_name_that_somebody_needs"
    evaluate.show_predictions(Path("p"), result(rows, effective_view=1_234_567, **{name: 9_876_543}))
    shown = capsys.readouterr().out
    assert "…" not in shown and "..." not in shown
    for cell in (f" {rows:,} ", " 1,234,567 ", " 9,876,543 ", " 0.1000–0.2000 ", " effective_view ", f" {name} "):
        assert cell in shown
    assert len(shown.splitlines()) == 8  # no cell goes over two lines


def test_names_are_shown_as_they_are(capsys: pytest.CaptureFixture[str]) -> None:
    evaluate.show_predictions(Path("[bold]/p[/]"), result(5, **{MARKUP: 3}))
    shown = capsys.readouterr().out
    assert "[bold]/p[/]: 5 rows" in shown and f" {MARKUP} " in shown


@pytest.mark.ray
def test_figures_that_cannot_be_shown_are_written(tmp_path: Path) -> None:
    columns = {"user_id": np.arange(20), "label": np.arange(20) % 2, "score": np.linspace(0, 1, 20)}
    pq.write_table(pa.table(columns), tmp_path / "scored.parquet")
    # Leaving the file tries once more to write what was printed.
    with pytest.raises(OSError, match="No space left"), Path("/dev/full").open("w") as full, redirect_stdout(full):
        evaluate.main(["--predictions", str(tmp_path / "scored.parquet")])
    assert json.loads((tmp_path / "scored.parquet.eval.json").read_text())["rows"] == 20
