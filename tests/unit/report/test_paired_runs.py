"""p-values of two runs from their predictions, against the tests written out as loops."""

import itertools
import json
import math
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from rankmixer_dist.errors import UserError
from rankmixer_dist.report.compare import compare, lines_of
from rankmixer_dist.report.inputs import read_run
from rankmixer_dist.report.paired_runs import p_values
from tests.unit.report.test_compare import write_run

ROWS, USERS = 240, 9


@pytest.fixture
def log():
    """Rows of a few users, whose labels two models guess, one better than the other; a label in ten is unknown."""
    random = np.random.default_rng(5)
    labels = random.integers(0, 2, ROWS).astype(np.float32)
    scores = {name: labels * skill + random.normal(0, 1, ROWS) for name, skill in (("a", 1.2), ("b", 0.7))}
    labels[::10] = np.nan
    log = {"row_id": random.permutation(ROWS) * 7, "user_id": random.integers(0, USERS, ROWS) - 4, "label": labels}
    return log | {name: np.float32(1 / (1 + np.exp(-score))) for name, score in scores.items()}


def a_run(folder: Path, log: dict, model: str, *, seed: int = 1, files: int = 1, order=slice(None), **config) -> Path:
    """A run directory whose predictions are a model's scores of the log, in some order and number of files."""
    known = ~np.isnan(log["label"])
    auc = loop_auc(log[model][known], log["label"][known])
    run = write_run(folder, auc, seed=seed, rows=ROWS, **config)
    (run / "predictions").mkdir()
    columns = {"row_id": log["row_id"], "user_id": log["user_id"]}
    columns |= {"label_finish": log["label"], "score_finish": log[model]}
    table = pa.table({name: column[order] for name, column in columns.items()})
    for part in range(files):
        pq.write_table(
            table.slice(part * ROWS // files, ROWS // files), run / "predictions" / f"part-{part:05d}.parquet"
        )
    return run


def loop_auc(scores, labels) -> float:
    wins = [(p > n) + 0.5 * (p == n) for p in scores[labels == 1] for n in scores[labels == 0]]
    return float(np.mean(wins)) if wins else math.nan


def delong(log) -> float:
    """From the placement values of both models, as DeLong et al. define them."""
    known = ~np.isnan(log["label"])
    positive, negative = log["label"][known] == 1, log["label"][known] == 0
    gained_10, gained_01 = [], []
    of_model = [log[model][known].astype(float) for model in ("a", "b")]
    for row in np.flatnonzero(positive):
        a, b = (np.mean((s[row] > s[negative]) + 0.5 * (s[row] == s[negative])) for s in of_model)
        gained_10.append(a - b)
    for row in np.flatnonzero(negative):
        a, b = (np.mean((s[positive] > s[row]) + 0.5 * (s[positive] == s[row])) for s in of_model)
        gained_01.append(a - b)
    variance = np.var(gained_10, ddof=1) / len(gained_10) + np.var(gained_01, ddof=1) / len(gained_01)
    return math.erfc(abs(np.mean(gained_10)) / math.sqrt(variance) / math.sqrt(2))


def all_flips(log) -> float:
    gained = []
    for user in np.unique(log["user_id"]):
        own = (log["user_id"] == user) & ~np.isnan(log["label"])
        aucs = [loop_auc(log[model][own], log["label"][own]) for model in ("a", "b")]
        gained.append((aucs[0] - aucs[1]) * own.sum())
    sums = [abs(np.dot(signs, gained)) for signs in itertools.product((1, -1), repeat=len(gained))]
    return float(np.mean(np.array(sums) >= abs(sum(gained)) - 1e-9))


def test_they_are_those_of_the_loops_whatever_order_and_files_the_rows_come_in(tmp_path, log):
    mine = a_run(tmp_path / "a", log, "a")
    theirs = a_run(tmp_path / "b", log, "b", files=3, order=np.random.default_rng(1).permutation(ROWS))
    found = p_values(read_run(mine), read_run(theirs), "finish")
    assert found["auc"] == pytest.approx(delong(log), rel=1e-9)
    assert found["uauc"] == pytest.approx(all_flips(log), abs=1e-12)
    assert found == p_values(read_run(theirs), read_run(mine), "finish")
    assert 0 < found["auc"] < 0.05 < 1


def test_a_run_does_not_differ_from_its_copy(tmp_path, log):
    runs = [read_run(a_run(tmp_path / name, log, "a")) for name in ("one", "other")]
    assert p_values(*runs, "finish") == {"auc": 1.0, "uauc": 1.0}


def test_the_table_has_the_lowest_and_the_highest_over_seeds(tmp_path, log):
    turned = log | {"a": log["b"], "b": log["a"]}
    runs = [a_run(tmp_path / f"a{seed}", log, "a", seed=seed) for seed in (1, 2)]
    runs += [a_run(tmp_path / f"b{seed}", of, "b", seed=seed, model__dim=16) for seed, of in ((1, log), (2, turned))]
    reference, line = lines_of(compare(runs), differences=True, tested=True)
    assert " p " not in reference.figures[0]
    assert line.figures[0].endswith(f", p {delong(log):.2g} to 1")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda log: log | {"row_id": log["row_id"] + 1}, "scored other rows, though as many"),
        (lambda log: log | {"row_id": log["row_id"][::-1]}, "read other labels of 'finish', or other users"),
        (lambda log: log | {"label": np.roll(log["label"], 10)}, "read other labels of 'finish', or other users"),
        (lambda log: log | {"user_id": log["user_id"] + 1}, "read other labels of 'finish', or other users"),
    ],
)
def test_runs_on_other_rows_are_refused(tmp_path, log, change, message):
    runs = [a_run(tmp_path / "a", log, "a"), a_run(tmp_path / "b", change(log), "b", model__dim=16)]
    with pytest.raises(UserError, match=message):
        list(lines_of(compare(runs), differences=True, tested=True))


def test_predictions_that_are_missing_or_of_another_evaluation_are_refused(tmp_path, log):
    mine, theirs = a_run(tmp_path / "a", log, "a"), a_run(tmp_path / "b", log, "b")
    content = json.loads((theirs / "eval.json").read_text())
    content["tasks"]["finish"]["auc"] += 1e-4
    (theirs / "eval.json").write_text(json.dumps(content))
    with pytest.raises(UserError, match=r"b: predictions/ gives finish an AUC of .*, eval\.json"):
        p_values(read_run(mine), read_run(theirs), "finish")
    (theirs / "predictions" / "part-00000.parquet").unlink()
    with pytest.raises(UserError, match=r"b: no predictions/; run launch/evaluate\.py"):
        p_values(read_run(mine), read_run(theirs), "finish")
