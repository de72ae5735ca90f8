"""AUC and its DeLong interval against pair-by-pair counting, scikit-learn, and a naive O(n^2) variance."""

import math
import pickle

import numpy as np
import pytest
from sklearn.metrics import roc_auc_score

from rankmixer_dist.metrics import AUC


def naive_auc(scores: np.ndarray, labels: np.ndarray) -> float:
    """Every positive against every negative, counted in halves."""
    positive, negative = scores[labels][:, None], scores[~labels][None, :]
    doubled_wins = 2 * int((positive > negative).sum()) + int((positive == negative).sum())
    return doubled_wins / (2 * positive.size * negative.size)


def naive_delong_variance(scores: np.ndarray, labels: np.ndarray) -> float:
    """DeLong et al. (1988) as printed: structural components from the whole kernel matrix."""
    positive, negative = scores[labels][:, None], scores[~labels][None, :]
    kernel = (positive > negative) + 0.5 * (positive == negative)
    v10, v01 = kernel.mean(axis=1), kernel.mean(axis=0)
    auc = kernel.mean()
    s10 = ((v10 - auc) ** 2).sum() / (len(v10) - 1)
    s01 = ((v01 - auc) ** 2).sum() / (len(v01) - 1)
    return s10 / len(v10) + s01 / len(v01)


def random_rows(seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Rows with both classes; the seed decides size, dtype, positive rate and how many scores tie."""
    rng = np.random.default_rng(seed)
    rows = int(rng.integers(4, 400))
    scores = rng.normal(size=rows)
    distinct = (1, 2, 5, 50, 10**9)[seed % 5]
    scores = np.round(scores * distinct) / distinct if distinct > 1 else np.zeros(rows)
    labels = rng.random(rows) < rng.choice([0.02, 0.3, 0.5, 0.97])
    labels[:2], labels[2:4] = True, False
    order = rng.permutation(rows)
    return scores[order].astype((np.float32, np.float64)[seed % 2]), labels[order]


def computed(scores: np.ndarray, labels: np.ndarray) -> AUC:
    state = AUC()
    state.update(scores, labels)
    return state


@pytest.mark.parametrize("seed", range(100))
def test_auc_equals_pair_counting_and_sklearn(seed: int) -> None:
    scores, labels = random_rows(seed)
    result = computed(scores, labels).compute()
    assert result.auc == naive_auc(scores, labels)
    assert result.auc == pytest.approx(roc_auc_score(labels, scores), rel=0, abs=1e-15)
    assert (result.positives, result.negatives) == (labels.sum(), (~labels).sum())


@pytest.mark.parametrize("block", range(10))
def test_two_thousand_small_cases(block: int) -> None:
    for seed in range(200 * block, 200 * (block + 1)):
        rng = np.random.default_rng(seed)
        rows = int(rng.integers(0, 30))
        scores = rng.integers(-3, 4, rows) * rng.choice([0.1, 1e-30, 1e30])
        labels = rng.random(rows) < rng.choice([0.1, 0.5, 0.9])
        found = computed(scores.astype((np.float32, np.float64)[seed % 2]), labels).compute().auc
        if labels.any() and not labels.all():
            assert found == naive_auc(scores, labels)
            # Seen: 2.2e-16.
            assert found == pytest.approx(roc_auc_score(labels, scores), rel=0, abs=1e-15)
        else:
            assert math.isnan(found)


@pytest.mark.parametrize("seed", range(100))
def test_delong_variance_equals_the_naive_one(seed: int) -> None:
    scores, labels = random_rows(seed)
    result = computed(scores, labels).compute()
    expected = naive_delong_variance(scores, labels)
    assert result.variance == pytest.approx(expected, rel=5e-15, abs=0)
    half_width = 1.959963984540054 * math.sqrt(expected)
    assert result.ci95_low == pytest.approx(max(0.0, result.auc - half_width), rel=0, abs=1e-15)
    assert result.ci95_high == pytest.approx(min(1.0, result.auc + half_width), rel=0, abs=1e-15)


def test_interval_covers_the_true_auc_in_95_of_100_samples() -> None:
    rng = np.random.default_rng(0)
    # Two unit normals one apart: AUC = Phi(1 / sqrt 2).
    true_auc = 0.5 * (1 + math.erf(0.5))
    trials = 2000
    covered = 0
    for _ in range(trials):
        labels = rng.random(300) < 0.4
        result = computed(rng.normal(size=300) + labels, labels).compute()
        covered += result.ci95_low <= true_auc <= result.ci95_high
    # Three binomial standard deviations around the nominal level.
    assert abs(covered / trials - 0.95) < 3 * math.sqrt(0.95 * 0.05 / trials)


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_bit_identical_for_any_partition_and_merge_order(dtype: type) -> None:
    rng = np.random.default_rng(1)
    labels = rng.random(3000) < 0.1
    scores = (np.round(rng.normal(size=3000) + labels, 2)).astype(dtype)
    whole = computed(scores, labels).compute()
    for _ in range(20):
        order = rng.permutation(3000)
        cuts = np.sort(rng.integers(0, 3001, size=rng.integers(0, 9)))
        states = []
        for part in np.split(order, cuts):
            state = AUC()
            for batch in np.array_split(part, 3):
                state.update(scores[batch], labels[batch])
            states.append(pickle.loads(pickle.dumps(state)))
        while len(states) > 1:
            merged = states.pop(rng.integers(len(states)))
            states[rng.integers(len(states))].merge(merged)
        assert states[0].compute() == whole


def test_one_float64_part_keeps_every_float32_score() -> None:
    mixed = computed(np.array([0.1, 0.1], np.float32), np.array([1, 0]))
    mixed.update(np.array([0.1]), np.array([0]))
    # float32(0.1) lies above float64(0.1): the positive ties one negative and beats the other.
    assert mixed.compute().auc == 0.75


def test_order_of_tied_rows_does_not_matter() -> None:
    assert computed(np.array([0.5, 0.5]), np.array([1, 0])).compute().auc == 0.5
    assert computed(np.array([0.5, 0.5]), np.array([0, 1])).compute().auc == 0.5


def test_minus_zero_ties_with_zero() -> None:
    assert computed(np.array([-0.0, 0.0]), np.array([0, 1])).compute().auc == 0.5


@pytest.mark.parametrize("labels", [[], [0, 0, 0], [1, 1, 1]])
def test_single_class_is_nan(labels: list[int]) -> None:
    result = computed(np.linspace(0, 1, len(labels)), np.array(labels, np.int64)).compute()
    assert math.isnan(result.auc) and math.isnan(result.variance) and math.isnan(result.ci95_low)
    assert (result.positives, result.negatives) == (sum(labels), len(labels) - sum(labels))


def test_a_single_positive_has_an_auc_but_no_interval() -> None:
    result = computed(np.array([0.1, 0.2, 0.3]), np.array([0, 1, 0])).compute()
    assert result.auc == 0.5 and math.isnan(result.ci95_low) and math.isnan(result.ci95_high)


def test_rows_are_copied_and_merge_leaves_the_other_state_alone() -> None:
    scores, labels = np.array([0.9, 0.1]), np.array([True, False])
    first, second = computed(scores, labels), computed(scores, ~labels)
    scores[:], labels[:] = 0.5, True
    first.merge(second)
    second.update(np.array([0.95]), np.array([1]))
    assert first.compute().auc == 0.5 and first.compute().positives == 2
    assert second.compute().auc == 0.5 and second.compute().positives == 2


def test_labels_of_any_dtype() -> None:
    for dtype in (np.bool_, np.int8, np.uint8, np.int64, np.float32):
        assert computed(np.array([0.1, 0.2, 0.3]), np.array([0, 1, 0], dtype)).compute().positives == 1


@pytest.mark.parametrize(
    ("scores", "labels", "message"),
    [
        (
            [0.1, math.nan, 0.2, math.inf],
            [0, 1, 0, 1],
            r"^scores: 2 of 4 values are not finite, first at index 1 \(nan\)$",
        ),
        ([0.1, 0.2, -math.inf], [0, 1, 0], r"^scores: 1 of 3 values are not finite, first at index 2 \(-inf\)$"),
        ([0.1, 0.2, 0.3], [0, -1, 2], r"^labels: 2 of 3 values are neither 0 nor 1, first at index 1 \(-1\)$"),
        ([0.1, 0.2], [0.0, math.nan], r"^labels: 1 of 2 values are neither 0 nor 1, first at index 1 \(nan\)$"),
        ([0.1, 0.2], [0], r"^columns differ in length: scores 2, labels 1$"),
        ([[0.1], [0.2]], [0, 1], r"^scores: expected one dimension, got shape \(2, 1\)$"),
        ([1, 2], [0, 1], r"^scores: expected float32 or float64, got int64$"),
    ],
)
def test_refused_rows(scores: list, labels: list, message: str) -> None:
    state = AUC()
    with pytest.raises(ValueError, match=message):
        state.update(scores, labels)
    assert state.rows == 0
