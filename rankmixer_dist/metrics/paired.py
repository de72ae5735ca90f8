"""Two models on the same rows: the difference of their AUC or UAUC, and whether it is more than chance."""

import math
from dataclasses import dataclass
from functools import partial

import numpy as np
from numpy.typing import ArrayLike, NDArray

from rankmixer_dist.metrics.auc_counts import variance_of_mean
from rankmixer_dist.metrics.auc_result import NORMAL_QUANTILE_975
from rankmixer_dist.metrics.exact_products import exact_dot
from rankmixer_dist.metrics.keys import key_order, run_starts, score_keys
from rankmixer_dist.metrics.row_state import RowState
from rankmixer_dist.metrics.rows import check_labels, check_scores, check_user_ids
from rankmixer_dist.metrics.user_auc import exact_user_aucs
from rankmixer_dist.metrics.user_resampling import UserBootstrap, sign_flip_p_value
from rankmixer_dist.metrics.user_totals import UserAUCTotals

CHECK_A, CHECK_B = (partial(check_scores, name=name) for name in ("scores_a", "scores_b"))


@dataclass(frozen=True)
class PairedAUCResult:
    """AUC of model a against model b; what is undefined is NaN.

    Attributes:
        auc_a, auc_b: of each model.
        difference: auc_a - auc_b.
        standard_error: DeLong's, of the difference on the same rows.
        ci95_low, ci95_high: difference -+ 1.96 standard errors.
        p_value: two-sided, normal; 1 where the models order the rows alike.
    """

    auc_a: float
    auc_b: float
    difference: float
    standard_error: float
    ci95_low: float
    ci95_high: float
    p_value: float


class PairedAUC(RowState):
    """Mergeable paired comparison of AUCs (DeLong et al. 1988); bit-identical for every split of the rows.

    Keeps the rows: 9 bytes a row with float32 scores. AUCs, difference and its variance come from whole numbers, each
    rounded once. Without weights.
    """

    checks = {"scores_a": CHECK_A, "scores_b": CHECK_B, "labels": check_labels}

    def update(self, scores_a: ArrayLike, scores_b: ArrayLike, labels: ArrayLike) -> None:
        """Add rows: scores_a, scores_b [rows] float32 or float64, labels [rows] of 0 and 1.

        Raises:
            ValueError: scores that are NaN or infinite, labels other than 0 and 1, lengths that differ.
        """
        self._rows.append({"scores_a": scores_a, "scores_b": scores_b, "labels": labels}, None)

    def compute(self) -> PairedAUCResult:
        """Both AUCs and the test of their difference over all rows so far.

        Var(AUC_a - AUC_b) = Var_i(V10_a - V10_b) / P + Var_j(V01_a - V01_b) / N, as in `exact_auc`.
        """
        rows = self._rows.arrays()
        labels = rows["labels"]
        positives, negatives = int(np.count_nonzero(labels)), int(np.count_nonzero(~labels))
        if positives == 0 or negatives == 0:
            return PairedAUCResult(*[math.nan] * 7)
        below_a, below_b = (doubled_opposites_below(rows[name], labels) for name in ("scores_a", "scores_b"))
        wins_a, wins_b = int(below_a[labels].sum()), int(below_b[labels].sum())
        doubled_pairs = 2 * positives * negatives
        auc_a, auc_b, difference = wins_a / doubled_pairs, wins_b / doubled_pairs, (wins_a - wins_b) / doubled_pairs
        if positives == 1 or negatives == 1:
            return PairedAUCResult(auc_a, auc_b, difference, *[math.nan] * 4)
        variance = 0.0
        for own, count, scale in ((labels, positives, 2 * negatives), (~labels, negatives, 2 * positives)):
            gained = np.abs(below_a[own] - below_b[own])
            variance += variance_of_mean(wins_a - wins_b, exact_dot(gained, gained), count, scale)
        error = math.sqrt(variance)
        half_width = NORMAL_QUANTILE_975 * error
        return PairedAUCResult(
            auc_a,
            auc_b,
            difference,
            error,
            difference - half_width,
            difference + half_width,
            _p_value(difference, error),
        )


@dataclass(frozen=True)
class PairedUserAUCResult:
    """UAUC of model a against model b; what is undefined is NaN.

    Attributes:
        uauc_a, uauc_b: of each model, weighted by impressions.
        difference: uauc_a - uauc_b.
        standard_error, ci95_low, ci95_high: of the difference, by the bootstrap by user.
        p_value: two-sided, by flipping the signs of users' differences.
        users_scored: users with both classes.
        users_changed: users whose AUC the models do not share.
    """

    uauc_a: float
    uauc_b: float
    difference: float
    standard_error: float
    ci95_low: float
    ci95_high: float
    p_value: float
    users_scored: int
    users_changed: int


class PairedUserAUC(RowState):
    """Mergeable paired comparison of UAUCs; bit-identical for every split of the rows.

    Keeps the rows: 17 bytes a row with float32 scores, 8 more with weights.
    """

    checks = {"scores_a": CHECK_A, "scores_b": CHECK_B, "labels": check_labels, "user_ids": check_user_ids}

    def update(
        self,
        scores_a: ArrayLike,
        scores_b: ArrayLike,
        labels: ArrayLike,
        user_ids: ArrayLike,
        weights: ArrayLike | None = None,
    ) -> None:
        """Add rows: scores_a, scores_b [rows] float32 or float64, labels [rows] of 0 and 1, user_ids [rows] integers,
        and weights [rows], 1 each if left out.

        Raises:
            ValueError: scores that are NaN or infinite, labels other than 0 and 1, ids that are no int64, weights that
                `check_weights` refuses, lengths that differ.
        """
        self._rows.append({"scores_a": scores_a, "scores_b": scores_b, "labels": labels, "user_ids": user_ids}, weights)

    def compute(self, *, replicates: int = 1000, flips: int = 9999, seed: int = 0) -> PairedUserAUCResult:
        """Both UAUCs, the interval of their difference and the test of it over all rows so far."""
        rows = self._rows.arrays()
        scores_a, scores_b = rows.pop("scores_a"), rows.pop("scores_b")
        # The labels are the same, so are the users that are scored, and their order.
        users_a, users_b = exact_user_aucs(scores_a, **rows), exact_user_aucs(scores_b, **rows)
        user_ids, impressions = users_a.user_ids, users_a.impressions
        totals_a, totals_b = UserAUCTotals(), UserAUCTotals()
        totals_a.update(users_a)
        totals_b.update(users_b)
        uauc_a, uauc_b = totals_a.compute().uauc, totals_b.compute().uauc
        gained = (users_a.auc - users_b.auc) * impressions
        bootstrap = UserBootstrap(replicates, seed)
        bootstrap.update(user_ids, gained, impressions)
        errors = bootstrap.compute()
        return PairedUserAUCResult(
            uauc_a=uauc_a,
            uauc_b=uauc_b,
            difference=uauc_a - uauc_b,
            standard_error=errors.standard_error,
            ci95_low=errors.ci95_low,
            ci95_high=errors.ci95_high,
            p_value=sign_flip_p_value(user_ids, gained, flips=flips, seed=seed) if len(user_ids) else math.nan,
            users_scored=len(user_ids),
            users_changed=int(np.count_nonzero(gained)),
        )


def doubled_opposites_below(scores: NDArray[np.floating], labels: NDArray[np.bool_]) -> NDArray[np.int64]:
    """For each row [rows] twice the rows of the other class with a lower score, equal ones counted once."""
    order = key_order(score_keys(scores).astype(np.uint64))
    sorted_labels = labels[order]
    starts = run_starts(scores[order])
    ends = np.append(starts[1:], len(scores))
    doubled = np.empty(len(scores), np.int64)
    for own, other in ((sorted_labels, ~sorted_labels), (~sorted_labels, sorted_labels)):
        before = np.concatenate(([0], np.cumsum(other)))
        doubled[order[own]] = np.repeat(before[starts] + before[ends], ends - starts)[own]
    return doubled


def _p_value(difference: float, error: float) -> float:
    if error == 0:
        return 1.0 if difference == 0 else math.nan
    return math.erfc(abs(difference) / error / math.sqrt(2))
