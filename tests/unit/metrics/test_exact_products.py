"""Integer sums beyond 64 bits against Python's integers and fractions."""

from fractions import Fraction

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from rankmixer_dist.metrics.exact_products import (
    DOT_ROWS,
    carried,
    exact_dot,
    segment_products,
    shares,
    to_ints,
    to_limbs,
)

WEIGHTS = st.lists(st.floats(0, 2**40), min_size=1, max_size=20)
INTEGERS = st.integers(0, 2**63 - 1)


@given(st.lists(st.tuples(INTEGERS, INTEGERS), max_size=20))
def test_dot_equals_python_integers(pairs: list[tuple[int, int]]) -> None:
    a, b = (np.array([pair[side] for pair in pairs], np.int64) for side in (0, 1))
    assert exact_dot(a, b) == sum(x * y for x, y in pairs)


def test_dot_of_more_rows_than_fit_64_bits_at_once() -> None:
    rows = DOT_ROWS + 5
    assert exact_dot(np.full(rows, 2**63 - 1), np.full(rows, 2**63 - 1)) == rows * (2**63 - 1) ** 2


@given(WEIGHTS)
def test_limbs_spell_the_floats(weights: list[float]) -> None:
    limbs, exponent = to_limbs(np.array(weights))
    assert limbs.min() >= 0 and limbs.max() < 2**16
    assert [number * Fraction(2) ** exponent for number in to_ints(limbs)] == [Fraction(w) for w in weights]


@given(st.lists(st.lists(st.integers(0, 2**62), min_size=3, max_size=3), min_size=1, max_size=9))
def test_carrying_keeps_the_integers(limbs: list[list[int]]) -> None:
    expected = [sum(limb[column] << (16 * k) for k, limb in enumerate(limbs)) for column in range(3)]
    done = carried(np.array(limbs))
    assert done.min() >= 0 and done.max() < 2**16
    assert to_ints(np.array(limbs)) == expected
    whole = sum(expected) + 1
    exact = [float(Fraction(number, whole)) for number in expected]
    # Seen: 3.3e-16.
    np.testing.assert_allclose(shares(done, whole), exact, rtol=1e-15, atol=0)


@given(st.lists(st.tuples(st.floats(0, 2**40), st.floats(0, 2**40)), min_size=3, max_size=12))
def test_products_are_summed_segment_by_segment(pairs: list[tuple[float, float]]) -> None:
    (a, exponent_a), (b, exponent_b) = (to_limbs(np.array([pair[side] for pair in pairs])) for side in (0, 1))
    sums = to_ints(segment_products(a, b, np.array([0, 2])))
    exact = [Fraction(x) * Fraction(y) for x, y in pairs]
    assert [number * Fraction(2) ** (exponent_a + exponent_b) for number in sums] == [sum(exact[:2]), sum(exact[2:])]
