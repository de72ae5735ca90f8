"""Rows that are spread over ranks have the figures of one process, in memory and from disk, to the last bit."""

import json
from typing import Any

import numpy as np
import pytest

from rankmixer_dist.metrics import TaskMetrics
from tests.distributed.counting_cases import SLICES, TASKS, rows


def figures(columns: dict[str, np.ndarray], place: int, own: np.ndarray, *, scored_by: str = "scores") -> Any:
    """A task's figures by the state that keeps its rows, and how many have a label."""
    known = own & ~np.isnan(columns["labels"][:, place])
    state = TaskMetrics()
    state.update(columns[scored_by][known, place], columns["labels"][known, place], columns["users"][known])
    return {**state.compute(), "rows": int(known.sum())}


def expected() -> dict[str, Any]:
    """`tasks` and `slices` of eval.json."""
    columns = rows()
    everything = np.ones(len(columns["users"]), bool)
    tasks = {}
    for place, task in enumerate(TASKS):
        tasks[task] = figures(columns, place, everything)
        del tasks[task]["rows"]
        best = figures(columns, place, everything, scored_by="truth")
        tasks[task]["reachable"] = {"auc": best["auc"], "uauc": best["uauc"]}
    values = {"tab": columns["times"] % 5 - 2, "known": (columns["users"] > 3).astype(int)}
    slices = {
        column.name: {
            column.label(value): {
                "rows": int((values[column.name] == value).sum()),
                "tasks": {
                    task: figures(columns, place, values[column.name] == value) for place, task in enumerate(TASKS)
                },
            }
            for value in np.unique(values[column.name]).tolist()
        }
        for column in SLICES
    }
    return {"tasks": tasks, "slices": slices, "slice_legends": {"tab": "tabs", "known": "users"}}


@pytest.mark.parametrize("ranks", [2, 3])
def test_in_memory_and_from_disk_the_bits_of_one_process(ranks: int, launch, tmp_path) -> None:
    left = tmp_path / "rows.partial" / "rank-00007" / "run-killed"
    left.mkdir(parents=True)
    ended = launch.torchrun("tests/distributed/counting_cases.py", str(tmp_path), ranks=ranks)
    # All but the last case went well.
    assert ended.returncode == 2, ended.stderr[-3000:]
    (line,) = [line for line in ended.stderr.splitlines() if line.startswith("error: ")]
    assert line.startswith(f"error: cannot spill rows to {tmp_path}/rows.partial/rank-00001, free some space or name")
    assert "Traceback" not in ended.stderr
    in_memory, from_disk, again = (
        json.loads((tmp_path / f"{name}.json").read_text()) for name in ("memory", "disk", "disk again")
    )
    assert in_memory == {"found": expected(), "told": []}
    assert from_disk["found"] == expected() and again == from_disk
    for name, told in (("unmade", "No space left on device"), ("lost", "cannot spill rows")):
        ends = [json.loads((tmp_path / f"{name}-{rank}.json").read_text()) for rank in range(ranks)]
        assert all(told in end["error"] and end == ends[0] for end in ends)
        assert ends[0]["left"] == []
    assert {stage for stage, _, _ in from_disk["told"]} == {"find ranges", "count", "PR-AUC"}
    assert from_disk["told"][-1][1] == from_disk["told"][-1][2] > 40
    assert not left.exists()
    assert not (tmp_path / "rows.partial").exists()
