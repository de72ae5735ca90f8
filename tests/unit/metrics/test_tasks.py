"""TaskMetrics: the entry of one task in eval.json."""

import json
import pickle

import numpy as np
import pytest

from rankmixer_dist.metrics import AUC, PRAUC, Calibration, TaskMetrics, UserAUC


@pytest.fixture
def rows() -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    rng = np.random.default_rng(9)
    scores = rng.random(6000, dtype=np.float32) ** 2
    return scores, rng.random(6000) < scores, rng.integers(0, 500, 6000)


def computed(scores: np.ndarray, labels: np.ndarray, user_ids: np.ndarray) -> TaskMetrics:
    state = TaskMetrics()
    state.update(scores, labels, user_ids)
    return state


def test_figures_are_those_of_the_single_metrics(rows: tuple) -> None:
    scores, labels, user_ids = rows
    auc, pr_auc, user_auc, calibration = AUC(), PRAUC(), UserAUC(), Calibration()
    pr_auc.update(scores, labels)
    auc.update(scores, labels)
    user_auc.update(scores, labels, user_ids)
    calibration.update(scores, labels)
    assert computed(*rows).compute() == {
        "auc": auc.compute().auc,
        "pr_auc": pr_auc.compute(),
        "uauc": user_auc.compute().uauc,
        "uauc_unweighted": user_auc.compute().uauc_unweighted,
        "logloss": calibration.compute().logloss,
        "ne": calibration.compute().ne,
        "calibration": calibration.compute().calibration,
        "auc_ci95": [auc.compute().ci95_low, auc.compute().ci95_high],
        "positives": int(labels.sum()),
        "users_scored": user_auc.compute().users_scored,
    }


def test_figures_are_plain_numbers_and_valid_json(rows: tuple) -> None:
    figures = computed(*rows).compute()
    assert {type(figures[name]) for name in ("positives", "users_scored")} == {int}
    assert {type(value) for value in figures.values()} == {int, float, list}
    assert json.loads(json.dumps(figures, allow_nan=False)) == figures


def test_undefined_figures_are_null(rows: tuple) -> None:
    figures = TaskMetrics().compute()
    assert figures["auc"] is None and figures["auc_ci95"] == [None, None] and figures["positives"] == 0
    one_class = computed(np.array([0.25]), np.array([0]), np.array([7])).compute()
    assert one_class["logloss"] is not None and one_class["ne"] is None and one_class["uauc"] is None
    json.dumps(one_class, allow_nan=False)


def test_bit_identical_for_any_partition_and_merge_order(rows: tuple) -> None:
    whole = computed(*rows).compute()
    rng = np.random.default_rng(10)
    for _ in range(20):
        states = []
        for part in np.split(rng.permutation(6000), np.sort(rng.integers(0, 6001, size=rng.integers(0, 9)))):
            state = computed(*(column[part] for column in rows))
            states.append(pickle.loads(pickle.dumps(state)))
        while len(states) > 1:
            merged = states.pop(rng.integers(len(states)))
            states[rng.integers(len(states))].merge(merged)
        assert states[0].compute() == whole


def test_rows_are_kept_once(rows: tuple) -> None:
    arrays = computed(*rows)._rows.arrays()
    assert {name: array.dtype for name, array in arrays.items()} == {
        "scores": np.float32,
        "labels": np.bool_,
        "user_ids": np.int64,
    }
    assert sum(array.nbytes for array in arrays.values()) == 13 * 6000


def test_logits_are_refused_when_they_arrive() -> None:
    with pytest.raises(ValueError, match=r"^scores: 1 of 2 values are outside \[0, 1\], first at index 0 \(2.0\)$"):
        computed(np.array([2.0, 0.5]), np.array([0, 1]), np.array([1, 1]))
