"""Sums of products of integers without rounding, where they exceed 64 bits."""

import itertools

import numpy as np
from numpy.typing import NDArray

PART_BITS = 21
# Products of two parts are below 2**42, so that a million of them fit int64.
DOT_ROWS = 1 << 20
# Parts of products are made for some rows at a time, in the cache.
PRODUCT_ROWS = 1 << 13
# Products of two parts that fit int64 when they are summed.
SEGMENT_ROWS = 1 << 21

EXACT_FLOATS = 1 << 53
"""Integers up to here are float64 as they are, and so is the quotient of two of them correctly rounded."""

Parts = list[NDArray[np.int64]]
"""Integers [rows] in parts of 21 bits, the lowest first."""


def exact_dot(a: NDArray[np.int64], b: NDArray[np.int64]) -> int:
    """sum_i a_i b_i of integers from 0 to 2**63 - 1, exactly."""
    total = 0
    for start in range(0, len(a), DOT_ROWS):
        total += _dot(*(_parts(x[start : start + DOT_ROWS]) for x in (a, b)))
    return total


def exact_moments(w: NDArray[np.int64], b: NDArray[np.int64]) -> tuple[int, int, int, int]:
    """Sums of w b, w^2, w^2 b and w^2 b^2 over rows [rows] of integers from 0 to 2**62, exactly."""
    won = squares = won_squares = squared_wins = 0
    for start in range(0, len(w), PRODUCT_ROWS):
        weights, below = (_parts(x[start : start + PRODUCT_ROWS]) for x in (w, b))
        wins = _products(weights, below)
        won += sum(int(part.sum()) << (PART_BITS * i) for i, part in enumerate(wins))
        squares += _dot(weights, weights)
        won_squares += _dot(weights, wins)
        squared_wins += _dot(wins, wins)
    return won, squares, won_squares, squared_wins


def segment_dot(a: NDArray[np.int64], b: NDArray[np.int64], starts: NDArray[np.integer]) -> NDArray:
    """sum of a_i b_i over each segment of rows, exactly: int64, or Python's integers where they are larger than 2**53.

    Args:
        a, b: [rows] integers from 0 to 2**62.
        starts: [segments] first row of each segment, ascending from 0; none is empty.
    """
    longest = int(np.diff(starts, append=len(a)).max())
    if int(a.max()) * int(b.max()) * longest <= EXACT_FLOATS:
        return np.add.reduceat(a * b, starts)
    pieces = starts if longest <= SEGMENT_ROWS else np.union1d(starts, np.arange(0, len(a), SEGMENT_ROWS))
    sums = np.zeros(len(pieces), object)
    for i, part_a in enumerate(_parts(a)):
        for j, part_b in enumerate(_parts(b)):
            sums += np.add.reduceat(part_a * part_b, pieces).astype(object) << (PART_BITS * (i + j))
    return sums if pieces is starts else np.add.reduceat(sums, np.searchsorted(pieces, starts))


def _dot(a: Parts, b: Parts) -> int:
    return sum(
        int(np.dot(part_a, part_b)) << (PART_BITS * (i + j)) for i, part_a in enumerate(a) for j, part_b in enumerate(b)
    )


def _products(a: Parts, b: Parts) -> Parts:
    """The product of each row's two integers."""
    sums = [np.zeros(len(a[0]) if a else 0, np.int64) for _ in range(len(a) + len(b))]
    for i, part_a in enumerate(a):
        for j, part_b in enumerate(b):
            sums[i + j] += part_a * part_b
    for low, high in itertools.pairwise(sums):
        high += low >> PART_BITS
        low &= (1 << PART_BITS) - 1
    return sums


def _parts(values: NDArray[np.int64]) -> Parts:
    """Without parts that are zero for all."""
    bits = int(values.max()).bit_length() if len(values) else 0
    return [(values >> shift) & ((1 << PART_BITS) - 1) for shift in range(0, bits, PART_BITS)]
