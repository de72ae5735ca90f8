"""PRAUC against scikit-learn and a loop over thresholds in fractions."""

import math
from fractions import Fraction

import numpy as np
import pytest
from sklearn.metrics import average_precision_score

from rankmixer_dist.metrics import PRAUC


def naive(scores: np.ndarray, labels: np.ndarray, weights: np.ndarray) -> float:
    """The sum as it is defined, in fractions; rounded once."""
    exact = [Fraction(weight) for weight in weights.tolist()]
    total = sum(w for w, label in zip(exact, labels, strict=True) if label)
    area = Fraction(0)
    for threshold in np.unique(scores):
        taken = sum(w for w, score in zip(exact, scores, strict=True) if score >= threshold)
        taken_positive, gained = (
            sum(w for w, score, label in zip(exact, scores, labels, strict=True) if label and keep(score))
            for keep in (lambda score, t=threshold: score >= t, lambda score, t=threshold: score == t)
        )
        area += gained / total * taken_positive / taken
    return float(area)


def in_units(weights: np.ndarray) -> np.ndarray:
    """Multiples of 2**-30, none of them 0."""
    return np.maximum(np.rint(weights * 2**30), 1) / 2**30


def random_rows(seed: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    rows = int(rng.integers(1, 60))
    scores = np.round(rng.normal(size=rows), int(rng.integers(0, 4)))
    labels = rng.random(rows) < rng.choice([0.1, 0.5, 0.9])
    labels[0] = True
    weights = in_units(rng.random(rows) * 10.0 ** rng.integers(-3, 4, rows))
    order = rng.permutation(rows)
    return scores[order].astype((np.float32, np.float64)[seed % 2]), labels[order], weights[order]


def computed(scores: np.ndarray, labels: np.ndarray, weights: np.ndarray | None = None) -> float:
    state = PRAUC()
    state.update(scores, labels, weights)
    return state.compute()


@pytest.mark.parametrize("block", range(10))
def test_equals_sklearn_and_the_definition(block: int) -> None:
    for seed in range(50 * block, 50 * (block + 1)):
        scores, labels, weights = random_rows(seed)
        ones = np.ones(len(scores))
        # Seen, in this order: 2.2e-16, 4.0e-16, 4.2e-16, 5.5e-16.
        assert computed(scores, labels) == pytest.approx(naive(scores, labels, ones), rel=1e-15)
        assert computed(scores, labels) == pytest.approx(average_precision_score(labels, scores), rel=4e-15)
        weighted = computed(scores, labels, weights)
        assert weighted == pytest.approx(naive(scores, labels, weights), rel=2e-15)
        assert weighted == pytest.approx(average_precision_score(labels, scores, sample_weight=weights), rel=4e-15)


@pytest.mark.parametrize("seed", range(20))
def test_weights_that_are_nothing_beside_others(seed: int) -> None:
    scores, labels, weights = random_rows(seed)
    # The higher the score, the smaller the weight, down to the smallest one there is.
    weights = np.ldexp(
        weights / weights.max(), np.linspace(20, -30, len(scores)).astype(int)[np.argsort(np.argsort(scores))]
    )
    weights = in_units(weights)
    assert computed(scores, labels, weights) == pytest.approx(naive(scores, labels, weights), rel=2e-15)


@pytest.mark.parametrize(("labels", "area"), [([1, 0], 1.0), ([0, 1], 1.0), ([1, 1], 1.0)])
def test_the_smallest_weight_above_the_largest(labels: list[int], area: float) -> None:
    found = computed(np.array([0.9, 0.1]), np.array(labels, np.bool_), np.array([2.0**-30, 2.0**20]))
    # Its precision is not 1 where it stands below.
    expected = area if labels != [0, 1] else 2.0**20 / (2.0**20 + 2.0**-30)
    assert found == expected


@pytest.mark.parametrize("weighted", [False, True])
def test_bit_identical_for_any_partition_and_merge_order(weighted: bool, partitions) -> None:
    rng = np.random.default_rng(1)
    labels = rng.random(2000) < 0.2
    columns = {"scores": np.round(rng.normal(size=2000) + labels, 2), "labels": labels}
    if weighted:
        columns["weights"] = rng.exponential(size=2000)
    whole = computed(**columns)
    for state in partitions(PRAUC, columns):
        assert state.compute() == whole


def test_edges() -> None:
    assert math.isnan(computed(np.array([0.5]), np.array([0]))) and math.isnan(PRAUC().compute())
    assert computed(np.array([0.5]), np.array([1])) == 1.0
    # All in one tie: the share of positives.
    assert computed(np.full(4, 0.5), np.array([1, 0, 0, 0])) == 0.25
