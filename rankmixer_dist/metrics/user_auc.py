"""UAUC: the AUC inside each user's own rows, averaged over users."""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Self

import numpy as np
from numpy.typing import ArrayLike, NDArray

from rankmixer_dist.metrics.rows import RowBuffer, check_array_names, check_labels, check_scores, check_user_ids


@dataclass(frozen=True)
class UserAUCResult:
    """Per-user AUC averaged over the users that have both classes; NaN when no user has.

    Attributes:
        uauc: mean weighted by each user's number of rows (impressions).
        uauc_unweighted: every user counts the same.
        users_scored: users with both classes.
        rows_scored: rows of those users.
    """

    uauc: float
    uauc_unweighted: float
    users_scored: int
    rows_scored: int


def exact_user_auc(
    scores: NDArray[np.floating], labels: NDArray[np.bool_], user_ids: NDArray[np.int64]
) -> UserAUCResult:
    """UAUC of checked columns [rows], O(n log n) time and no loop over users.

    For user u with P_u positives, N_u negatives and n_u rows: AUC_u is Mann-Whitney with ties counted half, and
    UAUC = sum_u n_u AUC_u / sum_u n_u over users with P_u N_u > 0. Pairs are counted in halves as integers and the
    sum over users is correctly rounded (`math.fsum`), so neither row order, partition nor renamed users show.
    """
    if len(scores) == 0:
        return UserAUCResult(math.nan, math.nan, 0, 0)
    # np.lexsort((scores, user_ids)) at half the time: the first sort need not be stable.
    order = np.argsort(scores)
    order = order[np.argsort(user_ids[order], kind="stable")]
    user_ids, scores, labels = user_ids[order], scores[order], labels[order]

    new_user = np.concatenate(([True], user_ids[1:] != user_ids[:-1]))
    new_tie = np.concatenate(([True], scores[1:] != scores[:-1])) | new_user
    tie_starts = np.flatnonzero(new_tie)
    first_tie_of_user = np.flatnonzero(new_user[tie_starts])

    positives_of_tie = np.add.reduceat(labels, tie_starts, dtype=np.int64)
    negatives_of_tie = np.diff(tie_starts, append=len(scores)) - positives_of_tie
    negatives_before = np.cumsum(negatives_of_tie) - negatives_of_tie
    ties_of_user = np.diff(first_tie_of_user, append=len(tie_starts))
    negatives_below = negatives_before - np.repeat(negatives_before[first_tie_of_user], ties_of_user)
    doubled_wins = np.add.reduceat(positives_of_tie * (2 * negatives_below + negatives_of_tie), first_tie_of_user)

    positives = np.add.reduceat(positives_of_tie, first_tie_of_user)
    negatives = np.add.reduceat(negatives_of_tie, first_tie_of_user)
    scored = (positives > 0) & (negatives > 0)
    if not scored.any():
        return UserAUCResult(math.nan, math.nan, 0, 0)
    positives, negatives = positives[scored], negatives[scored]
    auc_of_user = doubled_wins[scored] / (2 * positives * negatives)
    rows_of_user = positives + negatives
    users_scored, rows_scored = len(auc_of_user), int(rows_of_user.sum())
    return UserAUCResult(
        uauc=math.fsum(auc_of_user * rows_of_user) / rows_scored,
        uauc_unweighted=math.fsum(auc_of_user) / users_scored,
        users_scored=users_scored,
        rows_scored=rows_scored,
    )


class UserAUC:
    """Mergeable exact UAUC; bit-identical for every split of the rows, even where a user's rows are apart.

    Keeps the rows: 13 bytes a row with float32 scores.
    """

    def __init__(self) -> None:
        self._rows = RowBuffer("scores", "labels", "user_ids")

    def update(self, scores: ArrayLike, labels: ArrayLike, user_ids: ArrayLike) -> None:
        """Add rows: scores [rows] float32 or float64, labels [rows] of 0 and 1, user_ids [rows] integers.

        Raises:
            ValueError: scores that are NaN or infinite, labels other than 0 and 1, ids that are no int64, lengths
                that differ.
        """
        self._rows.append(scores=check_scores(scores), labels=check_labels(labels), user_ids=check_user_ids(user_ids))

    def merge(self, other: Self) -> None:
        """Add the rows of another state to this one."""
        self._rows.merge(other._rows)

    def compute(self) -> UserAUCResult:
        """UAUC, weighted and not, over all rows so far."""
        return exact_user_auc(**self._rows.to_arrays())

    def to_arrays(self) -> dict[str, NDArray]:
        """The state as `scores` [rows], `labels` [rows] bool and `user_ids` [rows] int64."""
        return self._rows.to_arrays()

    @classmethod
    def from_arrays(cls, arrays: Mapping[str, NDArray]) -> Self:
        """The state that `to_arrays` was called on.

        Raises:
            ValueError: other array names, or values that `update` refuses.
        """
        check_array_names(arrays, {"scores", "labels", "user_ids"})
        state = cls()
        state.update(**arrays)
        return state
