"""HistogramAUC: the interval holds the exact AUC, whatever the scores."""

import math

import numpy as np
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from rankmixer_dist.metrics import AUC, HistogramAUC

ROWS = st.lists(st.tuples(st.floats(allow_nan=False, allow_infinity=False), st.booleans()), max_size=30)


def computed(scores: np.ndarray, labels: np.ndarray, bits: int = 20) -> HistogramAUC:
    state = HistogramAUC(bits)
    state.update(scores, labels)
    return state


def exact(scores: np.ndarray, labels: np.ndarray) -> float:
    state = AUC()
    state.update(scores, labels)
    return state.compute().auc


@given(ROWS, st.integers(4, 12))
@example([(1e300, True), (2e300, False), (-1e300, True), (0.0, False), (-0.0, True)], 4)
def test_the_interval_holds_the_exact_auc(rows: list[tuple[float, bool]], bits: int) -> None:
    scores, labels = np.array([score for score, _ in rows], np.float64), np.array([y for _, y in rows], np.bool_)
    result = computed(scores, labels, bits).compute()
    auc = exact(scores, labels)
    assert result.low <= auc <= result.high or (math.isnan(auc) and math.isnan(result.low) and math.isnan(result.high))
    assert (result.positives, result.negatives) == (labels.sum(), (~labels).sum())


def test_the_interval_holds_the_exact_auc_in_two_thousand_random_cases() -> None:
    for seed in range(2000):
        rng = np.random.default_rng(seed)
        rows = int(rng.integers(2, 200))
        labels = rng.random(rows) < rng.choice([0.1, 0.5])
        labels[:2] = True, False
        logits = np.round(rng.normal(rng.choice([-4, 0, 3]), 2, size=rows) + labels, int(rng.integers(0, 6)))
        scores = (logits if seed % 2 else 1 / (1 + np.exp(-logits))).astype((np.float32, np.float64)[seed // 2 % 2])
        result = computed(scores, labels, bits=int(rng.integers(4, 17))).compute()
        assert result.low <= exact(scores, labels) <= result.high


def test_the_width_is_the_share_of_pairs_within_a_bin() -> None:
    # With 4 bits a bin holds 32 powers of two: 0.3, 0.4 and 0.5 share one, 1e-12 and 4e9 have theirs.
    scores, labels = np.array([0.3, 0.4, 0.5, 1e-12, 4e9]), np.array([1, 0, 1, 0, 1])
    result = computed(scores, labels, bits=4).compute()
    # Six pairs: 3 won against 1e-12, 1 by 4e9; two are unknown.
    assert (result.low, result.high) == (4 / 6, 1.0)
    assert result.auc == (4 / 6 + 1) / 2


def test_a_bin_of_one_score_is_a_tie() -> None:
    constant = computed(np.full(5, 0.3), np.array([1, 0, 1, 0, 0]), bits=4).compute()
    assert constant.low == constant.high == 0.5


def test_probabilities_are_bounded_tightly_by_default() -> None:
    rng = np.random.default_rng(0)
    labels = rng.random(100_000) < 0.1
    scores = 1 / (1 + np.exp(-rng.normal(-2, 1, 100_000) - labels))
    result = computed(scores, labels).compute()
    # Seen: 3.1e-4.
    assert result.high - result.low < 6e-4
    assert abs(result.auc - exact(scores, labels)) <= (result.high - result.low) / 2


def test_bit_identical_for_any_partition_and_merge_order(partitions) -> None:
    rng = np.random.default_rng(1)
    labels = rng.random(2000) < 0.2
    scores = np.round(rng.normal(size=2000) + labels, 2)
    whole = computed(scores, labels, bits=10)
    for state in partitions(lambda: HistogramAUC(10), {"scores": scores, "labels": labels}):
        assert state.compute() == whole.compute()
        for name, array in whole.to_arrays().items():
            assert array.tobytes() == state.to_arrays()[name].tobytes()


def test_saved_are_the_bins_that_are_not_empty() -> None:
    arrays = computed(np.array([0.5, 0.5, 0.25]), np.array([1, 0, 1])).to_arrays()
    assert {name: array.size for name, array in arrays.items()} == {
        "bits": 1, "bins": 2, "positives": 2, "negatives": 2, "lowest": 2, "highest": 2,
    }  # fmt: skip


def test_refused() -> None:
    with pytest.raises(ValueError, match=r"^bits: expected 4 to 28, got 3$"):
        HistogramAUC(3)
    with pytest.raises(ValueError, match=r"^bits: a state of 5 cannot be merged into one of 4$"):
        HistogramAUC(4).merge(HistogramAUC(5))
    with pytest.raises(ValueError, match=r"^scores: 1 of 1 values are not finite"):
        computed(np.array([math.inf]), np.array([1]))
    with pytest.raises(ValueError, match=r"^columns differ in length"):
        computed(np.array([0.5]), np.array([1, 0]))
