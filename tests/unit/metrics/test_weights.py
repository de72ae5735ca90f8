"""Weighted figures against pair counting in fractions, repeated rows and scikit-learn."""

import math
from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from sklearn.metrics import log_loss, roc_auc_score

from rankmixer_dist.metrics import AUC, Calibration, TaskMetrics, UserAUC

ROWS = st.lists(
    st.tuples(
        st.sampled_from([0.1, 0.2, 0.25, 0.7, 0.9]), st.booleans(), st.integers(1, 4),
        st.just(0.0) | st.floats(2**-30, 2**20),
    ),
    max_size=25,
)  # fmt: skip
"""Score, label, user, weight."""


def rounded(weight: float) -> Fraction:
    """The nearest multiple of 2**-30, half to even."""
    return Fraction(round(Fraction(weight) * 2**30), 2**30)


def naive_auc(scores: np.ndarray, labels: np.ndarray, weights: np.ndarray) -> Fraction | None:
    """Pair by pair, without rounding; None with a single class."""
    rows = [(s, y, rounded(w)) for s, y, w in zip(scores.tolist(), labels.tolist(), weights.tolist(), strict=True)]
    won = pairs = Fraction(0)
    for score, label, weight in rows:
        for other, other_label, other_weight in rows:
            if label and not other_label:
                pairs += weight * other_weight
                won += weight * other_weight * Fraction((score > other) + (score >= other), 2)
    return won / pairs if pairs else None


def columns_of(rows: list[tuple[float, bool, int, float]]) -> dict[str, np.ndarray]:
    names = {"scores": np.float64, "labels": np.bool_, "user_ids": np.int64, "weights": np.float64}
    return {name: np.array([row[i] for row in rows], kind) for i, (name, kind) in enumerate(names.items())}


def random_columns(seed: int, rows: int, *, whole: bool = False) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(seed)
    labels = rng.random(rows) < 0.3
    scores = 1 / (1 + np.exp(-np.round(rng.normal(size=rows) + labels, 1)))
    weights = rng.integers(0, 5, rows) if whole else (rng.exponential(size=rows) + 1e-8) * (rng.random(rows) < 0.9)
    weights = np.rint(weights * 2**30) / 2**30
    return {"scores": scores, "labels": labels, "user_ids": rng.integers(0, rows // 20, rows), "weights": weights}


def auc(columns: dict[str, np.ndarray]) -> AUC:
    state = AUC()
    state.update(**{name: column for name, column in columns.items() if name != "user_ids"})
    return state


def user_auc(columns: dict[str, np.ndarray]) -> UserAUC:
    state = UserAUC()
    state.update(**columns)
    return state


def calibration(columns: dict[str, np.ndarray]) -> Calibration:
    state = Calibration()
    state.update(**{name: column for name, column in columns.items() if name != "user_ids"})
    return state


def task(columns: dict[str, np.ndarray]) -> TaskMetrics:
    state = TaskMetrics()
    state.update(**columns)
    return state


@given(ROWS)
def test_auc_is_the_correctly_rounded_one_of_weights_in_units(rows: list[tuple[float, bool, int, float]]) -> None:
    columns = columns_of(rows)
    exact = naive_auc(columns["scores"], columns["labels"], columns["weights"])
    found = auc(columns).compute().auc
    assert math.isnan(found) if exact is None else found == float(exact)


@given(ROWS)
def test_uauc_is_that_of_the_correctly_rounded_aucs(rows: list[tuple[float, bool, int, float]]) -> None:
    columns = columns_of(rows)
    scored = []
    for user in range(1, 5):
        own = columns["user_ids"] == user
        exact = naive_auc(columns["scores"][own], columns["labels"][own], columns["weights"][own])
        if exact is not None:
            impressions = float(sum(rounded(w) for w in columns["weights"][own].tolist()))
            used = int(np.count_nonzero(columns["weights"][own]))
            scored.append((float(exact), impressions, used))
    found = user_auc(columns).compute()
    assert (found.users_scored, found.rows_scored) == (len(scored), sum(used for _, _, used in scored))
    if scored:
        assert found.uauc_unweighted == math.fsum(value for value, _, _ in scored) / len(scored)
        won = math.fsum(value * impressions for value, impressions, _ in scored)
        assert found.uauc == won / math.fsum(impressions for _, impressions, _ in scored)


@pytest.mark.parametrize("block", range(10))
def test_against_sklearn(block: int) -> None:
    for seed in range(25 * block, 25 * (block + 1)):
        columns = random_columns(seed, rows=100)
        scores, labels, weights = (columns[name] for name in ("scores", "labels", "weights"))
        # Seen: 3.9e-16 of the AUC, 5.8e-16, 6.5e-16 and 4.6e-16 of the rest.
        expected = roc_auc_score(labels, scores, sample_weight=weights)
        assert auc(columns).compute().auc == pytest.approx(expected, rel=2e-15)
        result = calibration(columns).compute()
        expected = log_loss(labels, scores, sample_weight=weights)
        assert result.logloss == pytest.approx(expected, rel=4e-15)
        rate = np.average(labels, weights=weights)
        assert result.ne == pytest.approx(
            expected / log_loss([0, 1], [rate, rate], sample_weight=[1 - rate, rate]), rel=5e-15
        )
        assert result.calibration == pytest.approx((weights * scores).sum() / weights[labels].sum(), rel=4e-15)


@pytest.mark.parametrize("seed", range(20))
def test_whole_weights_are_rows_repeated(seed: int) -> None:
    columns = random_columns(seed, rows=400, whole=True)
    times = columns.pop("weights").astype(int)
    repeated = {name: np.repeat(column, times) for name, column in columns.items()}
    weighted, plain = task(columns | {"weights": times}).compute(), task(repeated).compute()
    for name in ("auc", "pr_auc", "uauc", "uauc_unweighted", "users_scored", "logloss", "ne", "calibration"):
        # The products of a weight and a loss are rounded. Seen: 2.1e-16.
        tolerance = 1e-15 if name in ("logloss", "ne", "calibration") else 0
        assert weighted[name] == pytest.approx(plain[name], rel=tolerance, abs=0), name


@pytest.mark.parametrize("seed", range(20))
def test_equal_weights_are_no_weights(seed: int) -> None:
    columns = random_columns(seed, rows=400)
    del columns["weights"]
    ones, threes = np.ones(400), np.full(400, 3.0)
    plain = task(columns).compute()
    assert task(columns | {"weights": ones}).compute() == plain
    for weights in (ones, threes):
        assert auc(columns | {"weights": weights}).compute() == auc(columns).compute()


@pytest.mark.parametrize("seed", range(20))
def test_the_variance_is_that_of_shares_in_fractions(seed: int) -> None:
    columns = random_columns(seed, rows=60, whole=bool(seed % 2))
    kept = columns["weights"] > 0
    scores, labels, weights = (columns[name][kept] for name in ("scores", "labels", "weights"))
    expected = Fraction(0)
    for own, sign in ((labels, 1), (~labels, -1)):
        mine = [(sign * score, Fraction(weight)) for score, weight in zip(scores[own], weights[own], strict=True)]
        others = [(sign * score, Fraction(weight)) for score, weight in zip(scores[~own], weights[~own], strict=True)]
        whole, whole_of_others = (sum(weight for _, weight in rows) for rows in (mine, others))
        beaten = [
            sum(weight * Fraction(int(score > other) + int(score >= other), 2) for other, weight in others)
            / whole_of_others
            for score, _ in mine
        ]
        shares = [weight / whole for _, weight in mine]
        mean = sum(share * value for share, value in zip(shares, beaten, strict=True))
        squares = sum((share * (value - mean)) ** 2 for share, value in zip(shares, beaten, strict=True))
        expected += squares * Fraction(len(mine), len(mine) - 1)
    # Each of the two sums is rounded once, and their sum again.
    assert auc(columns).compute().variance == pytest.approx(float(expected), rel=4e-16, abs=0)


def test_the_interval_of_weighted_rows_covers_the_true_auc_in_95_of_100_samples() -> None:
    rng = np.random.default_rng(0)
    true_auc = 0.5 * (1 + math.erf(0.5))
    trials = 1000
    covered = 0
    for _ in range(trials):
        labels = rng.random(400) < 0.4
        # Weights that know nothing of the scores leave the AUC where it is and widen its error.
        result = auc(
            {"scores": rng.normal(size=400) + labels, "labels": labels, "weights": rng.exponential(size=400)}
        ).compute()
        covered += result.ci95_low <= true_auc <= result.ci95_high
    # Three binomial standard deviations around the nominal level.
    assert abs(covered / trials - 0.95) < 3 * math.sqrt(0.95 * 0.05 / trials)


def test_reliability_bins_are_weighted() -> None:
    columns = {
        "scores": np.array([0.5, 0.5, 0.99]),
        "labels": np.array([1, 0, 0]),
        "weights": np.array([3.0, 1.0, 2.0]),
    }
    bins = calibration(columns).reliability()
    half, high = np.flatnonzero(bins.rows)
    assert (bins.rows[half], bins.rate[half], bins.mean_score[half]) == (2, 0.75, 0.5)
    assert bins.calibration[half] == 4 * 0.5 / 3 and math.isnan(bins.calibration[high]) and bins.rate[high] == 0
    assert math.isnan(bins.rate[0])


@pytest.mark.parametrize("make", [AUC, UserAUC, Calibration, TaskMetrics])
def test_bit_identical_for_any_partition_and_merge_order(make: type, partitions) -> None:
    columns = random_columns(7, rows=2000)
    if make in (AUC, Calibration):
        del columns["user_ids"]
    whole = make()
    whole.update(**columns)
    for state in partitions(make, columns):
        assert state.compute() == whole.compute()


@pytest.mark.parametrize("make", [AUC, UserAUC, Calibration, TaskMetrics])
def test_rows_without_weights_have_weight_one(make: type) -> None:
    columns = random_columns(8, rows=600, whole=True)
    if make in (AUC, Calibration):
        del columns["user_ids"]
    columns["weights"][:300] = 1
    first, second = ({name: column[part] for name, column in columns.items()} for part in (slice(300), slice(300, 600)))
    whole = make()
    whole.update(**columns)
    del first["weights"]
    for batches in ((first, second), (second, first)):
        one, other, merged = make(), make(), make()
        for batch in batches:
            one.update(**batch)
        other.update(**batches[1])
        merged.update(**batches[0])
        merged.merge(other)
        assert one.compute() == merged.compute() == whole.compute()


def test_a_refused_update_leaves_the_state_as_it_was() -> None:
    state = AUC()
    state.update([0.5, 0.25], [1, 0])
    before = state.compute()
    with pytest.raises(ValueError, match="weights"):
        state.update([0.5, 0.25], [1, 0], [1.0, -1.0])
    assert state.compute() == before


@pytest.mark.parametrize(
    ("weights", "message"),
    [
        *(
            (
                [1.0, bad],
                rf"^weights: 1 of 2 values are not 0 or between 2\*\*-30 and 2\*\*20, first at index 1 \({bad}\)$",
            )
            for bad in (-1.0, math.nan, math.inf, 9e-10, 1048577.0)
        ),
        ([1.0], r"^columns differ in length: scores 2, (labels 2, )?(user_ids 2, )?weights 1$"),
        (["1", "2"], r"^weights: expected numbers of at most 64 bits, got <U1$"),
    ],
)
@pytest.mark.parametrize("state", [AUC, UserAUC, Calibration, TaskMetrics])
def test_refused_weights(state: type, weights: list, message: str) -> None:
    user_ids = () if state in (AUC, Calibration) else ([1, 1],)
    with pytest.raises(ValueError, match=message):
        state().update([0.5, 0.25], [1, 0], *user_ids, weights=weights)
