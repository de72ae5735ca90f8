"""Sums of products without rounding: counts that exceed 64 bits, and real weights as integers in 16-bit limbs."""

import numpy as np
from numpy.typing import NDArray

DOT_BITS = 21
# Products of two parts are below 2**42, so that a million of them fit int64.
DOT_ROWS = 1 << 20

LIMB_BITS = 16
MANTISSA_BITS = 53
# Every float64 is a whole multiple of 2**-1074; this one is as many whole limbs below 1.
UNIT_EXPONENT = -1088


def exact_dot(a: NDArray[np.int64], b: NDArray[np.int64]) -> int:
    """sum_i a_i b_i of integers from 0 to 2**63 - 1, exactly."""
    total = 0
    for start in range(0, len(a), DOT_ROWS):
        parts_a, parts_b = (_parts(x[start : start + DOT_ROWS]) for x in (a, b))
        for i, part_a in enumerate(parts_a):
            for j, part_b in enumerate(parts_b):
                total += int(np.dot(part_a, part_b)) << (DOT_BITS * (i + j))
    return total


def _parts(values: NDArray[np.int64]) -> list[NDArray[np.int64]]:
    """Integers as parts of 21 bits, the lowest first, without parts that are zero for all."""
    bits = int(values.max()).bit_length()
    return [(values >> shift) & ((1 << DOT_BITS) - 1) for shift in range(0, bits, DOT_BITS)]


def to_limbs(values: NDArray[np.float64]) -> tuple[NDArray[np.int64], int]:
    """Finite values [rows], not negative, as limbs [limbs, rows] below 2**16, the lowest first, and an exponent.

    values = sum_k limbs[k] 2**(16 k + exponent), exactly: floats are whole multiples of a power of two. The exponent is
    a multiple of 16, so that a value has the same limbs whatever values it comes with, zeros aside. The number of limbs
    grows with the span from the lowest bit of the values to the highest: 1 for small integers, 3 to 4 for
    float32, 5 for float64 of a few orders of magnitude.
    """
    fractions, exponents = np.frexp(values)
    mantissas = np.ldexp(fractions, MANTISSA_BITS).astype(np.int64)
    used = mantissas > 0
    if not used.any():
        return np.zeros((1, len(values)), np.int64), 0
    # x & -x is the lowest bit; frexp of 2**t is t + 1.
    trailing_zeros = np.frexp((mantissas & -mantissas).astype(np.float64))[1] - 1
    lowest = int((exponents + trailing_zeros)[used].min())
    lowest -= (lowest - MANTISSA_BITS) % LIMB_BITS
    num_limbs = -(-(MANTISSA_BITS + int(exponents[used].max()) - lowest) // LIMB_BITS)
    # A mantissa of zero may sit anywhere.
    shifts = np.where(used, exponents - lowest, 0).astype(np.int64)
    limbs = np.empty((num_limbs, len(values)), np.int64)
    for k in range(num_limbs):
        right = LIMB_BITS * k - shifts
        # What a shift to the left pushes out of int64 lies above the limb.
        shifted = np.where(right >= 0, mantissas >> np.clip(right, 0, 63), mantissas << np.clip(-right, 0, 63))
        limbs[k] = shifted & ((1 << LIMB_BITS) - 1)
    return limbs, lowest - MANTISSA_BITS


def carried(limbs: NDArray[np.int64]) -> NDArray[np.int64]:
    """The same integers with every limb below 2**16; limbs may be up to 2**62 and become more."""
    carry = np.zeros(limbs.shape[1], np.int64)
    done = []
    for limb in limbs:
        total = limb + carry
        done.append(total & ((1 << LIMB_BITS) - 1))
        carry = total >> LIMB_BITS
    while carry.any():
        done.append(carry & ((1 << LIMB_BITS) - 1))
        carry >>= LIMB_BITS
    return np.stack(done)


def to_ints(limbs: NDArray[np.int64]) -> list[int]:
    """The integers [columns] that limbs [limbs, columns] spell, of any length."""
    rows = np.ascontiguousarray(carried(limbs).T.astype("<u2"))
    return [int.from_bytes(row.tobytes(), "little") for row in rows]


def scaled(number: int, exponent: int) -> float:
    """number * 2**exponent, correctly rounded, for an integer that may be beyond the range of floats."""
    return number / (1 << -exponent) if exponent < 0 else float(number << exponent)


def from_int(number: int) -> tuple[NDArray[np.int64], int]:
    """An integer from 0 on as limbs [limbs, 1] below 2**16, the lowest first, and an exponent, a multiple of 16."""
    if number == 0:
        return np.zeros((1, 1), np.int64), 0
    zeros = ((number & -number).bit_length() - 1) // LIMB_BITS
    number >>= LIMB_BITS * zeros
    size = -(-number.bit_length() // LIMB_BITS)
    limbs = np.frombuffer(number.to_bytes(2 * size, "little"), "<u2").astype(np.int64)
    return limbs[:, np.newaxis], LIMB_BITS * zeros


def plus_int(limbs: NDArray[np.int64], shift: int, number: int) -> tuple[NDArray[np.int64], int]:
    """Integers as limbs [limbs, columns] of 2**shift each, plus a number; limbs below 2**16, and their new shift."""
    added, added_shift = from_int(number)
    if number:
        low = max(0, (shift - added_shift) // LIMB_BITS)
        shift -= LIMB_BITS * low
        first = (added_shift - shift) // LIMB_BITS
        high = max(0, first + len(added) - low - len(limbs))
        limbs = np.pad(limbs, ((low, high), (0, 0)))
        limbs[first : first + len(added)] += added
    return carried(limbs), shift


def shares(limbs: NDArray[np.int64], whole: int, shift: int = 0) -> NDArray[np.float64]:
    """The integers [columns] that limbs [limbs, columns] of 2**shift each spell, each divided by `whole`; to a few
    roundings, which limbs of zeros above and below do not change."""
    scale = whole.bit_length()
    parts = [np.ldexp(limb.astype(np.float64), LIMB_BITS * k + shift - scale) for k, limb in enumerate(limbs)]
    return sum(parts, np.zeros(limbs.shape[1])) / (whole / (1 << scale))


def segment_products(a: NDArray[np.int64], b: NDArray[np.int64], starts: NDArray[np.integer]) -> NDArray[np.int64]:
    """sum of a_i b_i over each segment of rows, exactly: limbs [limbs, segments] for `to_ints`.

    Args:
        a, b: limbs [limbs, rows], each below 2**16.
        starts: [segments] first row of each segment; none is empty.
    """
    sums = np.zeros((len(a) + len(b) - 1, len(starts)), np.int64)
    for i, limb_a in enumerate(a):
        for j, limb_b in enumerate(b):
            sums[i + j] += np.add.reduceat(limb_a * limb_b, starts)
    return sums
