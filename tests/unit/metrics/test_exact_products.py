"""Integer sums beyond 64 bits against Python's integers."""

import itertools

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from rankmixer_dist.metrics import exact_products
from rankmixer_dist.metrics.exact_products import DOT_ROWS, SEGMENT_ROWS, exact_dot, exact_moments, segment_dot

INTEGERS = st.integers(0, 2**63 - 1)
SMALLER = st.integers(0, 2**62) | st.integers(0, 2**21)


@given(st.lists(st.tuples(INTEGERS, INTEGERS), max_size=20))
def test_dot_equals_python_integers(pairs: list[tuple[int, int]]) -> None:
    a, b = (np.array([pair[side] for pair in pairs], np.int64) for side in (0, 1))
    assert exact_dot(a, b) == sum(x * y for x, y in pairs)


def test_dot_of_more_rows_than_fit_64_bits_at_once() -> None:
    rows = DOT_ROWS + 5
    assert exact_dot(np.full(rows, 2**63 - 1), np.full(rows, 2**63 - 1)) == rows * (2**63 - 1) ** 2


@given(st.lists(st.tuples(SMALLER, SMALLER), max_size=20))
def test_moments_equal_python_integers(pairs: list[tuple[int, int]]) -> None:
    w, b = (np.array([pair[side] for pair in pairs], np.int64) for side in (0, 1))
    assert exact_moments(w, b) == tuple(
        sum(moment(x, y) for x, y in pairs)
        for moment in (lambda x, y: x * y, lambda x, _: x * x, lambda x, y: x * x * y, lambda x, y: (x * y) ** 2)
    )


def test_moments_of_many_of_the_largest() -> None:
    rows, large = 20_000, 2**62
    found = exact_moments(np.full(rows, large), np.full(rows, large))
    assert found == (rows * large**2, rows * large**2, rows * large**3, rows * large**4)


@given(st.lists(st.tuples(SMALLER, SMALLER), min_size=3, max_size=12))
def test_products_are_summed_segment_by_segment(pairs: list[tuple[int, int]]) -> None:
    a, b = (np.array([pair[side] for pair in pairs], np.int64) for side in (0, 1))
    exact = [x * y for x, y in pairs]
    assert segment_dot(a, b, np.array([0, 2])).tolist() == [sum(exact[:2]), sum(exact[2:])]


def test_small_products_are_no_python_integers() -> None:
    ones = np.ones(5, np.int64)
    assert segment_dot(ones, ones, np.array([0, 2])).dtype == np.int64
    assert segment_dot(ones * 2**40, ones * 2**40, np.array([0, 2])).dtype == object


@pytest.mark.parametrize("segment_rows", [1, 4, 6, 16])
def test_segments_of_more_rows_than_fit_64_bits_at_once(segment_rows: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(exact_products, "SEGMENT_ROWS", segment_rows)
    rng = np.random.default_rng(segment_rows)
    a, b = rng.integers(0, 2**62, (2, 30))
    starts = np.array([0, 1, 7, 8, 20])
    exact = [int(x) * int(y) for x, y in zip(a, b, strict=True)]
    bounds = itertools.pairwise([*starts, len(a)])
    assert segment_dot(a, b, starts).tolist() == [sum(exact[start:end]) for start, end in bounds]


def test_a_segment_of_many_of_the_largest() -> None:
    rows, large = SEGMENT_ROWS + 10, 2**62
    found = segment_dot(np.full(rows, large), np.full(rows, large), np.array([0, 3]))
    assert found.tolist() == [3 * large**2, (rows - 3) * large**2]
