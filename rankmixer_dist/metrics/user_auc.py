"""UAUC: the AUC inside each user's own rows, averaged over users."""

from collections.abc import Iterable

import numpy as np
from numpy.typing import ArrayLike, NDArray

from rankmixer_dist.metrics.exact_products import carried, scaled, segment_products, to_ints, to_limbs
from rankmixer_dist.metrics.row_state import RowState
from rankmixer_dist.metrics.rows import check_labels, check_scores, check_user_ids
from rankmixer_dist.metrics.user_ranking import UserRanking, rank_by_user
from rankmixer_dist.metrics.user_resampling import BootstrapResult, UserBootstrap
from rankmixer_dist.metrics.user_totals import UserAUCResult, UserAUCs, UserAUCTotals


def exact_user_auc(
    scores: NDArray[np.floating],
    labels: NDArray[np.bool_],
    user_ids: NDArray[np.int64],
    weights: NDArray[np.float64] | None = None,
) -> UserAUCResult:
    """UAUC of checked columns [rows]: sum_u n_u AUC_u / sum_u n_u over the users of `exact_user_aucs`.

    The sums over users are exact, so neither row order, partition nor renamed users show.
    """
    totals = UserAUCTotals()
    totals.update(exact_user_aucs(scores, labels, user_ids, weights))
    return totals.compute()


def exact_user_aucs(
    scores: NDArray[np.floating],
    labels: NDArray[np.bool_],
    user_ids: NDArray[np.int64],
    weights: NDArray[np.float64] | None = None,
) -> UserAUCs:
    """The AUC of each user with both classes, from checked columns [rows]; O(n log n) time and no loop over users.

    For user u with P_u positives and N_u negatives AUC_u is Mann-Whitney with ties counted half: pairs are counted in
    halves as integers and divided once by 2 P_u N_u. With weights (above 0) a pair counts the product of its two, see
    `weighted_auc`; each AUC is the correctly rounded one there too, and n_u is the user's sum of weights.
    """
    if len(scores) == 0:
        nobody = np.empty(0, np.int64)
        return UserAUCs(nobody, np.empty(0), np.empty(0), nobody)
    ranking = rank_by_user(scores, labels, user_ids, with_order=weights is not None)
    return _weighted(ranking, weights) if weights is not None else _unweighted(ranking)


def _unweighted(ranking: UserRanking) -> UserAUCs:
    positives_of_tie = np.add.reduceat(ranking.labels, ranking.tie_starts)
    negatives_of_tie = np.diff(ranking.tie_starts, append=len(ranking.labels)) - positives_of_tie
    negatives_before = np.cumsum(negatives_of_tie) - negatives_of_tie
    negatives_below = negatives_before - np.repeat(negatives_before[ranking.first_ties], ranking.ties_of_user())
    # A user with two billion rows of each class would overflow.
    doubled_wins = np.add.reduceat(positives_of_tie * (2 * negatives_below + negatives_of_tie), ranking.first_ties)

    positives = np.add.reduceat(positives_of_tie, ranking.first_ties)
    negatives = np.add.reduceat(negatives_of_tie, ranking.first_ties)
    scored = (positives > 0) & (negatives > 0)
    positives, negatives = positives[scored], negatives[scored]
    auc = doubled_wins[scored] / (2 * positives * negatives)
    rows = positives + negatives
    return UserAUCs(ranking.user_ids[scored], auc, rows.astype(np.float64), rows)


def _weighted(ranking: UserRanking, weights: NDArray[np.float64]) -> UserAUCs:
    limbs, exponent = to_limbs(weights[ranking.order])
    is_positive = ranking.labels.astype(np.bool_)
    first_rows = ranking.tie_starts[ranking.first_ties]
    positives = np.add.reduceat(ranking.labels, first_rows)
    rows = np.diff(first_rows, append=len(is_positive))
    scored = (positives > 0) & (positives < rows)
    if not scored.any():
        nobody = np.empty(0, np.int64)
        return UserAUCs(nobody, np.empty(0), np.empty(0), nobody)

    # Weight of the negatives before each row, and after the last.
    below = np.zeros((len(limbs), len(is_positive) + 1), np.int64)
    np.cumsum(np.where(is_positive, 0, limbs), axis=1, out=below[:, 1:])
    # The positives of scored users, one user after the other.
    chosen = np.flatnonzero(is_positive & np.repeat(scored, rows))
    tie_of_row = np.repeat(np.arange(len(ranking.tie_starts)), np.diff(ranking.tie_starts, append=len(is_positive)))
    ties = tie_of_row[chosen]
    first_row = np.repeat(first_rows[scored], positives[scored])
    doubled = below[:, ranking.tie_starts[ties]] + below[:, ranking.tie_ends()[ties]] - 2 * below[:, first_row]
    starts = np.cumsum(positives[scored]) - positives[scored]
    won = to_ints(segment_products(limbs[:, chosen], carried(doubled), starts))

    total_of_user, positive_of_user = (
        to_ints(np.add.reduceat(part, first_rows, axis=1)[:, scored])
        for part in (limbs, np.where(is_positive, limbs, 0))
    )
    pairs = zip(won, total_of_user, positive_of_user, strict=True)
    auc = np.array([wins / (2 * positive * (total - positive)) for wins, total, positive in pairs])
    impressions = np.array([scaled(total, exponent) for total in total_of_user])
    return UserAUCs(ranking.user_ids[scored], auc, impressions, rows[scored])


def bootstrap_uauc(parts: Iterable[UserAUCs], replicates: int, seed: int) -> BootstrapResult:
    """Standard error and interval of the UAUC over all parts of the users."""
    bootstrap = UserBootstrap(replicates, seed)
    for users in parts:
        bootstrap.update(users.user_ids, users.auc * users.impressions, users.impressions)
    return bootstrap.compute()


class UserAUC(RowState):
    """Mergeable exact UAUC; bit-identical for every split of the rows, even where a user's rows are apart.

    Keeps the rows: 13 bytes a row with float32 scores, 8 more with weights.
    """

    checks = {"scores": check_scores, "labels": check_labels, "user_ids": check_user_ids}

    def update(
        self, scores: ArrayLike, labels: ArrayLike, user_ids: ArrayLike, weights: ArrayLike | None = None
    ) -> None:
        """Add rows: scores [rows] float32 or float64, labels [rows] of 0 and 1, user_ids [rows] integers, and
        weights [rows], 1 each if left out.

        Raises:
            ValueError: scores that are NaN or infinite, labels other than 0 and 1, ids that are no int64, weights
                that are NaN, negative or above 2**40, lengths that differ.
        """
        self._rows.append({"scores": scores, "labels": labels, "user_ids": user_ids}, weights)

    def compute(self) -> UserAUCResult:
        """UAUC, weighted and not, over all rows so far."""
        return exact_user_auc(**self._rows.arrays())

    def bootstrap(self, replicates: int = 1000, seed: int = 0) -> BootstrapResult:
        """Standard error and interval of `uauc`, by drawing users (`UserBootstrap`)."""
        return bootstrap_uauc([exact_user_aucs(**self._rows.arrays())], replicates, seed)
