"""Rows sorted by user and score, cut into users and into ties within a user."""

from dataclasses import dataclass
from typing import Self

import numpy as np
from numpy.typing import NDArray

from rankmixer_dist.metrics.keys import key_order, run_starts, score_keys

SORT_BITS = 64
SIGN_BIT = np.uint64(1 << 63)


@dataclass(frozen=True)
class UserRanking:
    """Rows sorted by user, then by score; rows with the same user and score are a tie.

    Attributes:
        labels: [rows] int64 of 0 and 1, sorted; inside a tie in any order.
        order: [rows] which row stands in each place, or None if it was not asked for.
        tie_starts: [ties] first row of each tie.
        first_ties: [users] first tie of each user.
        user_ids: [users] int64, ascending.
    """

    labels: NDArray[np.int64]
    order: NDArray[np.integer] | None
    tie_starts: NDArray[np.integer]
    first_ties: NDArray[np.integer]
    user_ids: NDArray[np.int64]

    def ties_of_user(self) -> NDArray[np.integer]:
        """[users] how many ties each user has."""
        return np.diff(self.first_ties, append=len(self.tie_starts))


def rank_by_user(
    scores: NDArray[np.floating], labels: NDArray[np.bool_], user_ids: NDArray[np.int64], *, with_order: bool = False
) -> UserRanking:
    """Sorts checked columns [rows], at least one row.

    User, score and label of a row are packed into one integer of 64 bits, because numpy sorts values ten times as
    fast as it finds their order. A column that is too wide for that, such as user ids that are hashes, is numbered.
    """
    users = _Codes.of_keys(user_ids.view(np.uint64) ^ SIGN_BIT)
    places = _Codes.of_keys(score_keys(scores).astype(np.uint64))
    if users.bits + places.bits >= SORT_BITS:
        users = users.numbered()
    if users.bits + places.bits >= SORT_BITS:
        places = places.numbered()
    assert users.bits + places.bits < SORT_BITS
    # In place from here on: for tens of millions of rows the memory of each copy costs as much as the arithmetic.
    packed = users.codes
    packed <<= np.uint64(places.bits)
    packed |= places.codes
    packed <<= np.uint64(1)
    packed |= labels
    order = key_order(packed) if with_order else None
    if order is None:
        packed.sort()
    else:
        packed = packed[order]

    sorted_labels = (packed & np.uint64(1)).view(np.int64)
    packed >>= np.uint64(1)
    tie_starts = run_starts(packed)
    packed = packed[tie_starts] >> np.uint64(places.bits)
    first_ties = run_starts(packed)
    ids = (users.keys(packed[first_ties]) ^ SIGN_BIT).view(np.int64)
    return UserRanking(sorted_labels, order, tie_starts, first_ties, ids)


@dataclass(frozen=True)
class _Codes:
    """Keys as integers below 2**bits with the same order and ties; `distinct` holds the keys, or the lowest one."""

    codes: NDArray[np.uint64]
    bits: int
    distinct: NDArray[np.uint64] | np.uint64

    @classmethod
    def of_keys(cls, keys: NDArray[np.uint64]) -> Self:
        """Distance from the lowest key; overwrites the keys."""
        lowest = keys.min()
        keys -= lowest
        return cls(keys, int(keys.max()).bit_length(), lowest)

    def numbered(self) -> Self:
        """Place among the distinct keys."""
        order = key_order(self.codes)
        in_order = self.codes[order]
        starts = run_starts(in_order)
        is_start = np.zeros(len(order), np.bool_)
        is_start[starts] = True
        codes = np.empty(len(order), np.uint64)
        codes[order] = np.cumsum(is_start) - 1
        return type(self)(codes, (len(starts) - 1).bit_length(), self.keys(in_order[starts]))

    def keys(self, codes: NDArray[np.uint64]) -> NDArray[np.uint64]:
        """The keys that codes [any] stand for."""
        return self.distinct[codes] if isinstance(self.distinct, np.ndarray) else self.distinct + codes
