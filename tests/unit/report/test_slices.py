"""Figures by column in the report: their table, their picture, and names that HTML must not take for its own."""

import json
from typing import Any

import numpy as np
import pytest

from rankmixer_dist.metrics import TaskMetrics
from rankmixer_dist.report.page import render_report
from rankmixer_dist.report.slices import MAX_DRAWN, read_slices, slices_plot


def evaluation(names: list[str], *, rows: int = 60) -> dict[str, Any]:
    """An eval.json of one task, sliced by a column with those values; the first has positives only."""
    rng = np.random.default_rng(4)
    which, scores = np.repeat(np.arange(len(names)), rows), rng.random(len(names) * rows, dtype=np.float32)
    labels = (rng.random(len(scores)) < scores) | (which == 0)
    users = rng.integers(0, 5, len(scores))
    values = {}
    for value, name in enumerate(names):
        state, own = TaskMetrics(), which == value
        state.update(scores[own], labels[own], users[own])
        values[name] = {"rows": rows, "tasks": {"like": {**state.compute(), "rows": rows}}}
    whole = {k: v for k, v in values[names[-1]]["tasks"]["like"].items() if k != "rows"}
    return {
        "rows": len(scores),
        "tasks": {"like": whole},
        "slices": {"age": values},
        "slice_legends": {"age": "buckets of <age>"},
    }


def test_the_page_holds_every_value_and_escapes_its_name(tmp_path) -> None:
    content = evaluation(["< 7", "7 to < 15", "≥ 15"])
    (tmp_path / "eval.json").write_text(json.dumps(content))
    page = render_report(tmp_path).read_text()
    assert '<td class="left name">&lt; 7</td>' in page and "buckets of &lt;age&gt;" in page and "By age" in page
    assert "< 7<" not in page
    for value in content["slices"]["age"].values():
        auc = value["tasks"]["like"]["auc"]
        assert f'<td class="strong">{"–" if auc is None else f"{auc:.4f}"}</td>' in page


@pytest.mark.parametrize("num_values", [1, 3, MAX_DRAWN, MAX_DRAWN + 12])
def test_the_picture_has_room_for_the_largest(num_values) -> None:
    (column,) = read_slices(evaluation([f"value {index}" for index in range(num_values)]))
    assert column.rows == 60 * num_values
    plot = slices_plot(column, ["like"], prefix="p")
    if num_values == 1:
        assert plot is None  # one class alone has no AUC
        return
    assert plot is not None
    assert plot.svg.count("value ") == min(num_values, MAX_DRAWN)
    assert ("12 more" in plot.note) == (num_values > MAX_DRAWN)


def test_files_without_slices_have_none() -> None:
    assert read_slices({"rows": 3, "tasks": {}}) == []
