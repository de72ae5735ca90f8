"""UAUC: the AUC inside each user's own rows, averaged over users."""

from collections.abc import Iterable

import numpy as np
from numpy.typing import ArrayLike, NDArray

from rankmixer_dist.metrics.exact_products import EXACT_FLOATS, segment_dot
from rankmixer_dist.metrics.row_state import RowState
from rankmixer_dist.metrics.rows import check_labels, check_scores, check_user_ids
from rankmixer_dist.metrics.user_ranking import rank_by_user
from rankmixer_dist.metrics.user_resampling import BootstrapResult, UserBootstrap
from rankmixer_dist.metrics.user_totals import UserAUCResult, UserAUCs, UserAUCTotals
from rankmixer_dist.metrics.weights import UNITS_PER_ONE, weight_units


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
    halves as integers and divided once by 2 P_u N_u. With weights (above 0) a pair counts the product of its two, in
    units; each AUC is the correctly rounded one there too, and n_u is the user's sum of weights.
    """
    nobody = UserAUCs(np.empty(0, np.int64), np.empty(0), np.empty(0), np.empty(0, np.int64))
    if len(scores) == 0:
        return nobody
    ranking = rank_by_user(scores, labels, user_ids, with_order=weights is not None)
    units = weight_units(weights)
    if units is None:
        rows_of_tie, of_positives = np.diff(ranking.tie_starts, append=len(scores)), ranking.labels
    else:
        units = units[ranking.order]
        rows_of_tie, of_positives = np.add.reduceat(units, ranking.tie_starts), ranking.labels * units
    positives_of_tie = np.add.reduceat(of_positives, ranking.tie_starts)
    negatives_of_tie = rows_of_tie - positives_of_tie
    negatives_before = np.cumsum(negatives_of_tie) - negatives_of_tie
    negatives_below = negatives_before - np.repeat(negatives_before[ranking.first_ties], ranking.ties_of_user())
    doubled_wins = segment_dot(positives_of_tie, 2 * negatives_below + negatives_of_tie, ranking.first_ties)

    positives = np.add.reduceat(positives_of_tie, ranking.first_ties)
    negatives = np.add.reduceat(negatives_of_tie, ranking.first_ties)
    scored = (positives > 0) & (negatives > 0)
    if not scored.any():
        return nobody
    doubled_wins, positives, negatives = doubled_wins[scored], positives[scored], negatives[scored]
    impressions = (positives + negatives) / (1 if units is None else UNITS_PER_ONE)
    if doubled_wins.dtype == object or 2 * int(positives.max()) * int(negatives.max()) > EXACT_FLOATS:
        # Python's integers, whose quotient is the correctly rounded one.
        doubled_wins, positives, negatives = (x.astype(object) for x in (doubled_wins, positives, negatives))
    auc = (doubled_wins / (2 * positives * negatives)).astype(np.float64)
    rows = np.diff(ranking.tie_starts[ranking.first_ties], append=len(scores))[scored]
    return UserAUCs(ranking.user_ids[scored], auc, impressions, rows)


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
            ValueError: scores that are NaN or infinite, labels other than 0 and 1, ids that are no int64, weights that
                `check_weights` refuses, lengths that differ.
        """
        self._rows.append({"scores": scores, "labels": labels, "user_ids": user_ids}, weights)

    def compute(self) -> UserAUCResult:
        """UAUC, weighted and not, over all rows so far."""
        return exact_user_auc(**self._rows.arrays())

    def bootstrap(self, replicates: int = 1000, seed: int = 0) -> BootstrapResult:
        """Standard error and interval of `uauc`, by drawing users (`UserBootstrap`)."""
        return bootstrap_uauc([exact_user_aucs(**self._rows.arrays())], replicates, seed)
