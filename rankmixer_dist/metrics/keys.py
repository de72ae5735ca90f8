"""Unsigned integers that stand for scores and users, and a fast way to order rows by them."""

import numpy as np
from numpy.typing import NDArray


def score_keys(scores: NDArray[np.floating]) -> NDArray[np.unsignedinteger]:
    """Keys [rows] with the order and the ties of finite scores: uint32 for float32, uint64 for float64.

    IEEE 754 numbers of one sign are ordered as their bits; the sign bit is set for the positive ones, and the negative
    ones are turned around. Minus zero becomes zero first.
    """
    width = 8 * scores.dtype.itemsize
    bits = (scores + scores.dtype.type(0)).view(f"i{scores.dtype.itemsize}")
    # All ones for a negative number, only the sign bit for the others.
    flips = (bits >> (width - 1)) | bits.dtype.type(-(1 << (width - 1)))
    bits ^= flips
    return bits.view(f"u{scores.dtype.itemsize}")


MIX_STEP = np.uint64(0x9E3779B97F4A7C15)
MIX_FACTORS = (np.uint64(0xBF58476D1CE4E5B9), np.uint64(0x94D049BB133111EB))
UNMIX_FACTORS = tuple(np.uint64(pow(int(factor), -1, 1 << 64)) for factor in MIX_FACTORS)


def mixed(keys: NDArray[np.uint64]) -> NDArray[np.uint64]:
    """Keys [any] whose bits look random, different ones for different keys.

    The output function of SplitMix64 (Steele, Lea & Flood, OOPSLA 2014), a bijection of the 64-bit integers.
    """
    mixed = keys + MIX_STEP
    mixed ^= mixed >> np.uint64(30)
    mixed *= MIX_FACTORS[0]
    mixed ^= mixed >> np.uint64(27)
    mixed *= MIX_FACTORS[1]
    mixed ^= mixed >> np.uint64(31)
    return mixed


def user_keys(user_ids: NDArray[np.int64]) -> NDArray[np.uint64]:
    """Keys [rows] of users: a range of keys is a random part of the users, and holds all rows of each."""
    return mixed(user_ids.view(np.uint64))


def user_ids_of(keys: NDArray[np.uint64]) -> NDArray[np.int64]:
    """The user ids [rows] that `user_keys` made keys of: its steps backwards."""
    ids = keys ^ (keys >> np.uint64(31)) ^ (keys >> np.uint64(62))
    ids *= UNMIX_FACTORS[1]
    ids ^= (ids >> np.uint64(27)) ^ (ids >> np.uint64(54))
    ids *= UNMIX_FACTORS[0]
    ids ^= (ids >> np.uint64(30)) ^ (ids >> np.uint64(60))
    ids -= MIX_STEP
    return ids.view(np.int64)


def key_order(keys: NDArray[np.uint64]) -> NDArray[np.int64]:
    """Which row [rows] stands in each place when keys [rows] ascend; rows with equal keys come in any order.

    numpy sorts integers about ten times as fast as it finds their order, so the row's number is sorted along in the
    low bits. Where that pushes bits of the key out, the few rows that they would have told apart are ordered after.
    """
    if len(keys) == 0:
        return np.empty(0, np.int64)
    lowest = keys.min()
    row_bits = (len(keys) - 1).bit_length()
    lost_bits = max(0, int(keys.max() - lowest).bit_length() + row_bits - 64)
    packed = keys - lowest
    packed >>= np.uint64(lost_bits)
    packed <<= np.uint64(row_bits)
    packed |= np.arange(len(keys), dtype=np.uint64)
    packed.sort()
    order = (packed & np.uint64((1 << row_bits) - 1)).view(np.int64)
    if lost_bits == 0:
        return order
    packed >>= np.uint64(row_bits)
    joined = packed[1:] == packed[:-1]
    unsure = np.flatnonzero(np.append(joined, False) | np.append(False, joined))
    rows = order[unsure]
    order[unsure] = rows[np.argsort(keys[rows])]
    return order


def run_starts(values: NDArray) -> NDArray[np.int64]:
    """First row of each run of equal values [rows], at least one."""
    return np.concatenate(([0], np.flatnonzero(values[1:] != values[:-1]) + 1))
