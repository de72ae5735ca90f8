"""Whether the figures of two runs differ by more than chance, from the predictions of both on the same rows."""

import numpy as np
from numpy.typing import NDArray

from rankmixer_dist.errors import UserError
from rankmixer_dist.metrics import PairedAUC, PairedUserAUC
from rankmixer_dist.report.inputs import RunInputs
from rankmixer_dist.schema import LABEL_PREFIX, ROW_ID, SCORE_PREFIX, USER_ID

_ROUNDING = 1e-9
"""AUC is a quotient of whole numbers: eval.json and the predictions beside it give the same float."""


def p_values(mine: RunInputs, theirs: RunInputs, task: str) -> dict[str, float]:
    """Two-sided p-values by metric: `auc` by DeLong, over rows; `uauc` by flipping signs, over users.

    NaN where a figure is undefined. Both are about the rows that were scored, of one training each: that another seed
    would have done otherwise is no part of them. Takes 40 bytes a row for each run.

    Raises:
        UserError: a run has no predictions, they cannot be read, they are not those of its eval.json, or the two runs
            scored other rows or read other labels.
    """
    rows_a, rows_b = (_rows(run, task) for run in (mine, theirs))
    if not _alike(rows_a, rows_b, ROW_ID):
        raise UserError(
            f"{mine.directory_name} and {theirs.directory_name} scored other rows, though as many; evaluate both on "
            "the same prepared data"
        )
    if not (_alike(rows_a, rows_b, LABEL_PREFIX + task) and _alike(rows_a, rows_b, USER_ID)):
        raise UserError(
            f"{mine.directory_name} and {theirs.directory_name} read other labels of {task!r}, or other users, in the "
            "same rows; evaluate both on the same prepared data"
        )
    labels = rows_a[LABEL_PREFIX + task]
    known = ~np.isnan(labels)
    labels = labels[known] > 0
    scores_a, scores_b = (rows[SCORE_PREFIX + task][known] for rows in (rows_a, rows_b))
    by_row, by_user = PairedAUC(), PairedUserAUC()
    by_row.update(scores_a, scores_b, labels)
    by_user.update(scores_a, scores_b, labels, rows_a[USER_ID][known])
    of_rows = by_row.compute()
    for run, auc in ((mine, of_rows.auc_a), (theirs, of_rows.auc_b)):
        _require_same_figure(run, task, auc)
    return {"auc": of_rows.p_value, "uauc": by_user.compute().p_value}


def _rows(run: RunInputs, task: str) -> dict[str, NDArray]:
    """The columns of a run's predictions that are compared, in the order of `row_id`."""
    if run.predictions is None:
        raise UserError(f"{run.directory_name}: no predictions/; run launch/evaluate.py with its config again")
    columns = run.predictions.columns([ROW_ID, USER_ID, LABEL_PREFIX + task, SCORE_PREFIX + task])
    order = np.argsort(columns[ROW_ID], kind="stable")
    return {name: column[order] for name, column in columns.items()}


def _alike(rows_a: dict[str, NDArray], rows_b: dict[str, NDArray], column: str) -> bool:
    return np.array_equal(rows_a[column], rows_b[column], equal_nan=rows_a[column].dtype.kind == "f")


def _require_same_figure(run: RunInputs, task: str, auc: float) -> None:
    evaluation = run.evaluation
    assert evaluation is not None
    told = next((each.auc for each in evaluation.tasks if each.name == task), None)
    if told is not None and not abs(told - auc) <= _ROUNDING:
        raise UserError(
            f"{run.directory_name}: predictions/ gives {task} an AUC of {auc:.6f}, eval.json {told:.6f}; run "
            "launch/evaluate.py with its config again"
        )
