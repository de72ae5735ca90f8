"""UAUC against a loop over users that calls scikit-learn."""

import math
import pickle

import numpy as np
import pytest
from sklearn.metrics import roc_auc_score

from rankmixer_dist.metrics import UserAUC


def naive_user_auc(scores: np.ndarray, labels: np.ndarray, user_ids: np.ndarray) -> tuple[float, float, int, int]:
    aucs, weights = [], []
    for user in np.unique(user_ids):
        own = user_ids == user
        if labels[own].all() or not labels[own].any():
            continue
        aucs.append(roc_auc_score(labels[own], scores[own]))
        weights.append(int(own.sum()))
    if not aucs:
        return math.nan, math.nan, 0, 0
    return float(np.average(aucs, weights=weights)), float(np.mean(aucs)), len(aucs), sum(weights)


def random_rows(seed: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Interleaved users, most of them tiny; the seed decides dtype and how many scores tie."""
    rng = np.random.default_rng(seed)
    rows = int(rng.integers(1, 300))
    users = rng.integers(-(2**62), 2**62, size=max(1, rows // int(rng.integers(1, 30))))
    user_ids = users[np.minimum(rng.geometric(0.2, size=rows), len(users)) - 1]
    labels = rng.random(rows) < rng.choice([0.05, 0.3, 0.5])
    scores = np.round(rng.normal(size=rows) + labels, int(rng.integers(0, 4)))
    return scores.astype((np.float32, np.float64)[seed % 2]), labels, user_ids


def computed(scores: np.ndarray, labels: np.ndarray, user_ids: np.ndarray) -> UserAUC:
    state = UserAUC()
    state.update(scores, labels, user_ids)
    return state


@pytest.mark.parametrize("seed", range(100))
def test_equals_a_loop_over_users(seed: int) -> None:
    rows = random_rows(seed)
    result = computed(*rows).compute()
    uauc, unweighted, users, weight = naive_user_auc(*rows)
    assert result.uauc == pytest.approx(uauc, rel=0, abs=2e-15, nan_ok=True)
    assert result.uauc_unweighted == pytest.approx(unweighted, rel=0, abs=2e-15, nan_ok=True)
    assert (result.users_scored, result.rows_scored) == (users, weight)


def test_two_thousand_small_cases_equal_pair_counting_to_the_last_bit() -> None:
    for seed in range(2000):
        rng = np.random.default_rng(seed)
        rows = int(rng.integers(0, 40))
        # Ids that are near each other, far apart, and hashes; scores that fit 32 bits and such that do not.
        user_ids = rng.integers(-3, 4, rows) * rng.choice([1, 2**40, 0x1E3779B97F4A7C15])
        scores = rng.integers(-3, 4, rows) * rng.choice([0.1, 1e-30, 1e30])
        scores = scores.astype((np.float32, np.float64)[seed % 2])
        labels = rng.random(rows) < rng.choice([0.1, 0.5, 0.9])
        aucs, weights = [], []
        for user in np.unique(user_ids):
            positive, negative = (scores[(user_ids == user) & own] for own in (labels, ~labels))
            if len(positive) and len(negative):
                doubled_wins = sum(int((x > negative).sum()) + int((x >= negative).sum()) for x in positive)
                aucs.append(doubled_wins / (2 * len(positive) * len(negative)))
                weights.append(len(positive) + len(negative))
        found = computed(scores, labels, user_ids).compute()
        assert (found.users_scored, found.rows_scored) == (len(aucs), sum(weights))
        if aucs:
            won = math.fsum(auc * weight for auc, weight in zip(aucs, weights, strict=True))
            assert found.uauc == won / sum(weights)
            assert found.uauc_unweighted == math.fsum(aucs) / len(aucs)
        else:
            assert math.isnan(found.uauc)


def test_the_random_cases_hold_scored_and_unscored_users() -> None:
    scored = [computed(*random_rows(seed)).compute().users_scored for seed in range(100)]
    assert 0 in scored and max(scored) > 10


def test_users_weigh_by_their_rows_and_single_class_users_do_not_count() -> None:
    scores = np.array([0.9, 0.1, 0.8, 0.2, 0.3, 0.5, 0.5, 0.7])
    labels = np.array([1, 0, 0, 1, 1, 1, 0, 1])
    user_ids = np.array([1, 1, 2, 2, 2, 3, 3, 4])
    result = computed(scores, labels, user_ids).compute()
    # User 1: one pair won of 2 rows; user 2: both pairs lost of 3 rows; user 3: a tie of 2 rows; user 4: one class.
    assert result.uauc == (2 * 1.0 + 3 * 0.0 + 2 * 0.5) / 7
    assert result.uauc_unweighted == 0.5
    assert (result.users_scored, result.rows_scored) == (3, 7)


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_bit_identical_for_any_partition_and_merge_order(dtype: type) -> None:
    rng = np.random.default_rng(2)
    rows = 5000
    user_ids = rng.zipf(1.5, size=rows) % 400
    labels = rng.random(rows) < 0.3
    scores = np.round(rng.normal(size=rows) + labels, 2).astype(dtype)
    whole = computed(scores, labels, user_ids).compute()
    for _ in range(20):
        order = rng.permutation(rows)
        states = []
        for part in np.split(order, np.sort(rng.integers(0, rows + 1, size=rng.integers(0, 9)))):
            state = UserAUC()
            for batch in np.array_split(part, 3):
                state.update(scores[batch], labels[batch], user_ids[batch])
            states.append(pickle.loads(pickle.dumps(state)))
        while len(states) > 1:
            merged = states.pop(rng.integers(len(states)))
            states[rng.integers(len(states))].merge(merged)
        assert states[0].compute() == whole


def test_renaming_users_does_not_change_a_bit() -> None:
    rng = np.random.default_rng(3)
    user_ids, labels = rng.integers(0, 300, 4000), rng.random(4000) < 0.2
    scores = rng.random(4000, dtype=np.float32)
    new_names = rng.permutation(10**9 + np.arange(300))
    assert computed(scores, labels, user_ids).compute() == computed(scores, labels, new_names[user_ids]).compute()


@pytest.mark.parametrize("labels", [[], [0, 0], [1, 0]])
def test_nan_when_no_user_has_both_classes(labels: list[int]) -> None:
    result = computed(np.linspace(0, 1, len(labels)), np.array(labels, np.int64), np.arange(len(labels))).compute()
    assert math.isnan(result.uauc) and math.isnan(result.uauc_unweighted) and result.users_scored == 0


@pytest.mark.parametrize(
    ("user_ids", "message"),
    [
        (np.array([1.0, 2.0]), r"^user_ids: expected int64, got float64$"),
        (np.array([1, 2], np.uint64), r"^user_ids: expected int64, got uint64$"),
        (np.array([1]), r"^columns differ in length: scores 2, labels 2, user_ids 1$"),
    ],
)
def test_refused_user_ids(user_ids: np.ndarray, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        computed(np.array([0.1, 0.2]), np.array([0, 1]), user_ids)


def test_a_million_rows_take_no_loop_over_users() -> None:
    rng = np.random.default_rng(4)
    rows, users = 1_000_000, 250_000
    user_ids, labels = rng.integers(0, users, rows), rng.random(rows) < 0.5
    result = computed(rng.random(rows, dtype=np.float32), labels, user_ids).compute()
    # Random scores: each user's AUC has mean 1/2 and at most standard deviation 1/2.
    assert result.users_scored > 150_000
    assert abs(result.uauc_unweighted - 0.5) < 4 * 0.5 / math.sqrt(result.users_scored)
