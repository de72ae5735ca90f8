"""The table that evaluate.py prints."""

import pytest

from rankmixer_dist.verbs import evaluate

FIGURES = {"auc": 0.75, "uauc": 0.7, "pr_auc": 0.3, "logloss": 0.5, "ne": 0.9, "calibration": 1.0}


@pytest.mark.parametrize("reachable", [None, {"auc": 0.8, "uauc": None}])
def test_what_is_reachable_is_shown_where_it_is_known(capsys, reachable):
    known = {} if reachable is None else {"reachable": reachable}
    tasks = {"finish": {**FIGURES, **known}, "like": {**FIGURES, "auc": None}}
    evaluate.show({"split": "test", "rows": 1000, "checkpoint": "step-1", "tasks": tasks})
    shown = capsys.readouterr().out
    heads = [head.strip() for head in shown.splitlines()[2].strip("┃").split("┃")]
    rows = [[cell.strip() for cell in line.strip("│").split("│")] for line in shown.splitlines() if "│" in line]
    figures = ["0.7000", "0.3000", "0.5000", "0.9000", "1.0000"]
    if reachable is None:
        assert heads == ["task", "AUC", "UAUC", "PR-AUC", "logloss", "NE", "calibration"]
        assert rows == [["finish", "0.7500", *figures], ["like", "–", *figures]]
    else:
        best = ["best reachable", "gap"]
        assert heads == ["task", "AUC", *best, "UAUC", "best UAUC", "PR-AUC", "logloss", "NE", "calibration"]
        assert rows[0] == ["finish", "0.7500", "0.8000", "0.0500", "0.7000", "–", *figures[1:]]
        assert rows[1] == ["like", "–", "–", "–", "0.7000", "–", *figures[1:]]
