"""Log loss, NE, calibration and reliability bins against scikit-learn and exact fractions."""

import math
import pickle
from fractions import Fraction

import numpy as np
import pytest
from sklearn.metrics import log_loss

from rankmixer_dist.metrics import Calibration
from rankmixer_dist.metrics.calibration import LOGLOSS_CLIP
from rankmixer_dist.metrics.exact_sum import ExactSums


def computed(scores: np.ndarray, labels: np.ndarray) -> Calibration:
    state = Calibration()
    state.update(scores, labels)
    return state


def random_rows(seed: int) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    rows = int(rng.integers(2, 500))
    scores = 1 / (1 + np.exp(-rng.normal(rng.choice([-6, -2, 0, 3]), 2, size=rows)))
    labels = rng.random(rows) < scores
    labels[:2] = True, False
    return scores.astype((np.float32, np.float64)[seed % 2]), labels


@pytest.mark.parametrize("seed", range(50))
def test_against_sklearn_and_plain_sums(seed: int) -> None:
    scores, labels = random_rows(seed)
    result = computed(scores, labels).compute()
    p = np.clip(scores.astype(np.float64), LOGLOSS_CLIP, 1 - LOGLOSS_CLIP)
    assert result.logloss == pytest.approx(log_loss(labels, p), rel=2e-15)
    assert result.ne == pytest.approx(
        log_loss(labels, p) / log_loss(labels, np.full(len(labels), labels.mean())), rel=8e-15
    )
    assert result.calibration == float(sum(map(Fraction, scores.tolist())) / int(labels.sum()))
    assert (result.rows, result.positives) == (len(labels), labels.sum())


def test_predicting_the_base_rate_has_normalised_entropy_one() -> None:
    labels = np.arange(1000) < 137
    result = computed(np.full(1000, 0.137), labels).compute()
    assert result.ne == pytest.approx(1.0, rel=2e-15)
    assert result.calibration == pytest.approx(1.0, rel=1e-15)


def test_saturated_scores_cost_24_bits() -> None:
    result = computed(np.array([0.0, 1.0], np.float32), np.array([1, 0])).compute()
    assert result.logloss == pytest.approx(24 * math.log(2), rel=1e-15)
    # The largest float32 below one is what a saturated score counts as.
    below_one = computed(np.array([np.nextafter(np.float32(1), np.float32(0))]), np.array([0])).compute()
    assert below_one.logloss == computed(np.array([1.0]), np.array([0])).compute().logloss


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_bit_identical_for_any_partition_and_merge_order(dtype: type) -> None:
    rng = np.random.default_rng(5)
    rows = 20_000
    scores = (1 / (1 + np.exp(-rng.normal(-3, 3, size=rows)))).astype(dtype)
    labels = rng.random(rows) < scores
    whole = computed(scores, labels)
    for _ in range(20):
        order = rng.permutation(rows)
        states = []
        for part in np.split(order, np.sort(rng.integers(0, rows + 1, size=rng.integers(0, 9)))):
            state = Calibration()
            for batch in np.array_split(part, 3):
                state.update(scores[batch], labels[batch])
            states.append(pickle.loads(pickle.dumps(state)))
        while len(states) > 1:
            merged = states.pop(rng.integers(len(states)))
            states[rng.integers(len(states))].merge(merged)
        assert states[0].compute() == whole.compute()
        assert states[0].reliability().mean_score.tobytes() == whole.reliability().mean_score.tobytes()


def test_a_strided_view_gives_the_same_bits() -> None:
    rng = np.random.default_rng(6)
    scores, labels = rng.random((999, 3)), rng.random((999, 3)) < 0.5
    strided = computed(scores[:, 1], labels[:, 1]).compute()
    assert strided == computed(scores[:, 1].copy(), labels[:, 1].copy()).compute()


def test_minus_zero_is_zero() -> None:
    labels = np.array([0, 1])
    assert computed(np.array([-0.0, 0.5]), labels).compute() == computed(np.array([0.0, 0.5]), labels).compute()


def test_reliability_bins_hold_each_row_once() -> None:
    rng = np.random.default_rng(7)
    scores = np.concatenate((rng.random(5000), [0.0, 0.5, 1.0]))
    labels = rng.random(len(scores)) < scores
    bins = computed(scores, labels).reliability()
    for low, high, rows, positives, mean_score in zip(
        bins.edges[:-1], bins.edges[1:], bins.rows, bins.positives, bins.mean_score, strict=True
    ):
        own = (scores >= low) & ((scores < high) | ((high == 1.0) & (scores == 1.0)))
        assert rows == own.sum() and positives == labels[own].sum()
        assert mean_score == pytest.approx(scores[own].mean() if rows else math.nan, rel=2e-15, nan_ok=True)
    assert bins.rows.sum() == len(scores)


def test_undefined_figures_are_nan() -> None:
    empty = Calibration().compute()
    assert math.isnan(empty.logloss) and math.isnan(empty.ne) and math.isnan(empty.calibration)
    negatives = computed(np.array([0.25, 0.5]), np.array([0, 0])).compute()
    assert math.isnan(negatives.ne) and math.isnan(negatives.calibration)
    assert negatives.logloss == pytest.approx(-(math.log(0.75) + math.log(0.5)) / 2, rel=1e-15)
    positives = computed(np.array([0.25, 0.5]), np.array([1, 1])).compute()
    assert math.isnan(positives.ne) and positives.calibration == 0.375


@pytest.mark.parametrize(
    ("scores", "labels", "message"),
    [
        ([0.5, 1.5, -0.1], [0, 1, 0], r"^scores: 2 of 3 values are outside \[0, 1\], first at index 1 \(1.5\)$"),
        ([0.5, math.nan], [0, 1], r"^scores: 1 of 2 values are not finite, first at index 1 \(nan\)$"),
        ([0.5, 0.5], [0, 3], r"^labels: 1 of 2 values are neither 0 nor 1, first at index 1 \(3\)$"),
        ([0.5, 0.5], [0], r"^columns differ in length: scores 2, labels 1$"),
    ],
)
def test_refused_rows(scores: list, labels: list, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        computed(np.array(scores), np.array(labels))


def test_exact_sums_equal_fractions() -> None:
    rng = np.random.default_rng(8)
    values = np.concatenate((rng.random(2000) * 10.0 ** rng.integers(-320, 4, 2000), [0.0, 5e-324, 1e3]))
    groups = rng.integers(0, 3, len(values))
    sums = ExactSums(3)
    sums.add(values, groups)
    expected = [sum(map(Fraction, values[groups == group].tolist())) for group in range(3)]
    assert [Fraction(total, 2**1074) for total in sums.totals] == expected
    assert sums.rounded_sums().tolist() == [float(total) for total in expected]
    assert sums.ratio(ExactSums.of_counts(np.array([7]))) == float(sum(expected) / 7)
