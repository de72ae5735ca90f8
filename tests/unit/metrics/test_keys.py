"""Integer keys of scores and users, and the order of rows by them."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as npst

from rankmixer_dist.metrics.keys import key_order, run_starts, score_keys, user_ids_of, user_keys

FINITE = {"allow_nan": False, "allow_infinity": False}


@given(npst.arrays(np.float32, st.integers(1, 30), elements=st.floats(width=32, **FINITE)))
def test_float32_keys_are_ordered_and_tied_as_the_scores(scores: np.ndarray) -> None:
    keys = score_keys(scores)
    assert keys.dtype == np.uint32
    assert np.array_equal(keys[:, None] < keys, scores[:, None] < scores)
    assert np.array_equal(keys[:, None] == keys, scores[:, None] == scores)


@given(npst.arrays(np.float64, st.integers(1, 30), elements=st.floats(**FINITE)))
def test_float64_keys_are_ordered_and_tied_as_the_scores(scores: np.ndarray) -> None:
    keys = score_keys(scores)
    assert keys.dtype == np.uint64
    assert np.array_equal(keys[:, None] < keys, scores[:, None] < scores)
    assert np.array_equal(keys[:, None] == keys, scores[:, None] == scores)


@given(npst.arrays(np.int64, st.integers(0, 30)))
def test_user_keys_can_be_turned_back(user_ids: np.ndarray) -> None:
    before = user_ids.copy()
    assert np.array_equal(user_ids_of(user_keys(user_ids)), user_ids)
    assert np.array_equal(user_ids, before)


def test_user_keys_spread_consecutive_ids_evenly() -> None:
    counts = np.bincount(user_keys(np.arange(64_000)) >> np.uint64(58), minlength=64)
    # Pearson's chi-squared with 63 degrees of freedom: mean 63, standard deviation 11.2.
    assert ((counts - 1000) ** 2 / 1000).sum() < 63 + 4 * 11.2


@given(npst.arrays(np.uint64, st.integers(0, 50)))
def test_order_of_wide_keys(keys: np.ndarray) -> None:
    order = key_order(keys)
    assert np.array_equal(np.sort(order), np.arange(len(keys)))
    assert np.array_equal(keys[order], np.sort(keys))


@pytest.mark.parametrize("bits", [1, 20, 57, 58, 64])
def test_order_where_some_keys_differ_in_their_lowest_bits_only(bits: int) -> None:
    rng = np.random.default_rng(bits)
    keys = rng.integers(0, 2**bits, 100, dtype=np.uint64)[rng.integers(0, 100, 5000)]
    keys ^= rng.integers(0, 2, 5000, dtype=np.uint64)
    order = key_order(keys)
    assert np.array_equal(np.sort(order), np.arange(len(keys)))
    assert np.array_equal(keys[order], np.sort(keys))


def test_runs_start_where_values_change() -> None:
    assert run_starts(np.array([4, 4, 7, 7, 7, 1])).tolist() == [0, 2, 5]
    assert run_starts(np.array([4])).tolist() == [0]
