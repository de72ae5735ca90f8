"""UAUC from the AUC of each user: sums over users without rounding, which add up over parts of the users."""

import math
from dataclasses import dataclass
from typing import Self

import numpy as np
from numpy.typing import NDArray

from rankmixer_dist.metrics.exact_sum import ExactSums


@dataclass(frozen=True)
class UserAUCResult:
    """Per-user AUC averaged over the users that have both classes; NaN when no user has.

    Attributes:
        uauc: mean weighted by each user's number of rows (impressions), or sum of weights if weights were given.
        uauc_unweighted: every user counts the same.
        users_scored: users with both classes.
        rows_scored: rows of those users.
    """

    uauc: float
    uauc_unweighted: float
    users_scored: int
    rows_scored: int


@dataclass(frozen=True)
class UserAUCs:
    """The AUC inside each user that has both classes.

    Attributes:
        user_ids: [users] int64, ascending.
        auc: [users] float64, each correctly rounded.
        impressions: [users] float64, the user's rows or sum of weights.
        rows: [users] int64.
    """

    user_ids: NDArray[np.int64]
    auc: NDArray[np.float64]
    impressions: NDArray[np.float64]
    rows: NDArray[np.int64]


class UserAUCTotals:
    """UAUC over users whose AUCs are known, in 450 bytes: what workers that hold different users have to merge.

    All rows of a user belong into one `update`; the same user in two of them would count as two users. Bit-identical
    for every split of the users.
    """

    def __init__(self) -> None:
        # AUC times impressions, impressions, AUC.
        self._sums = ExactSums(3)
        self._users = 0
        self._rows = 0

    def update(self, users: UserAUCs) -> None:
        """Add users that were not added before."""
        values = np.concatenate((users.auc * users.impressions, users.impressions, users.auc))
        self._sums.add(values, np.repeat(np.arange(3), len(users.auc)))
        self._users += len(users.auc)
        self._rows += int(users.rows.sum())

    def merge(self, other: Self) -> None:
        """Add the users of another state, which are different ones."""
        self._sums.merge(other._sums)
        self._users += other._users
        self._rows += other._rows

    def compute(self) -> UserAUCResult:
        """UAUC, weighted and not, over all users so far."""
        if self._users == 0:
            return UserAUCResult(math.nan, math.nan, 0, 0)
        won, impressions, aucs = self._sums.rounded_sums().tolist()
        return UserAUCResult(won / impressions, aucs / self._users, self._users, self._rows)
