"""Paired comparison of two models against DeLong's kernel matrix and a loop over users."""

import math

import numpy as np
import pytest

from rankmixer_dist.metrics import AUC, PairedAUC, PairedUserAUC, UserAUC


def random_columns(seed: int, rows: int, *, gain: float = 0.0) -> dict[str, np.ndarray]:
    """Two noisy views of the same truth; `gain` makes the first the better one."""
    rng = np.random.default_rng(seed)
    labels = rng.random(rows) < 0.4
    labels[:2], labels[2:4] = True, False
    shared = rng.normal(size=rows) + labels
    digits = int(rng.integers(1, 6))
    scores_a, scores_b = (
        np.round(shared + extra * labels + 0.5 * rng.normal(size=rows), digits) for extra in (gain, 0)
    )
    user_ids = rng.zipf(1.6, rows) % max(2, rows // 15)
    return {"scores_a": scores_a, "scores_b": scores_b.astype(np.float32), "labels": labels, "user_ids": user_ids}


def auc_columns(*arguments: int, **options: float) -> dict[str, np.ndarray]:
    return {name: column for name, column in random_columns(*arguments, **options).items() if name != "user_ids"}


def computed(make: type, columns: dict[str, np.ndarray], **options: int):
    state = make()
    state.update(**columns)
    return state.compute(**options)


def naive_delong(columns: dict[str, np.ndarray]) -> tuple[float, float]:
    """Difference and its variance from both kernel matrices and their covariances, as printed."""
    labels = columns["labels"]
    v10, v01 = [], []
    for name in ("scores_a", "scores_b"):
        positive, negative = columns[name][labels][:, None], columns[name][~labels][None, :]
        kernel = (positive > negative) + 0.5 * (positive == negative)
        v10.append(kernel.mean(axis=1))
        v01.append(kernel.mean(axis=0))
    contrast = np.array([1, -1])
    covariance = np.cov(v10) / labels.sum() + np.cov(v01) / (~labels).sum()
    return v10[0].mean() - v10[1].mean(), contrast @ covariance @ contrast


@pytest.mark.parametrize("seed", range(100))
def test_auc_difference_and_variance_are_delongs(seed: int) -> None:
    columns = auc_columns(seed, rows=int(np.random.default_rng(seed).integers(4, 300)))
    found = computed(PairedAUC, columns)
    difference, variance = naive_delong(columns)
    for name, value in (("scores_a", found.auc_a), ("scores_b", found.auc_b)):
        alone = AUC()
        alone.update(columns[name], columns["labels"])
        assert value == alone.compute().auc
    # Seen: 4.7e-16.
    assert found.difference == pytest.approx(difference, rel=0, abs=1e-15)
    # The covariances of the matrices cancel. Seen: 2.6e-15 of the variance.
    assert found.standard_error**2 == pytest.approx(variance, rel=2e-14, abs=1e-18)
    if found.standard_error > 0:
        z = found.difference / found.standard_error
        assert found.p_value == math.erfc(abs(z) / math.sqrt(2))
        assert found.ci95_high - found.ci95_low == pytest.approx(
            2 * 1.959963984540054 * found.standard_error, rel=1e-14
        )


def test_auc_test_holds_its_level_and_finds_a_better_model() -> None:
    trials = 500
    # Alike models: rejected at 5 % about as often; three binomial standard deviations.
    rejected = np.mean([computed(PairedAUC, auc_columns(seed, rows=400)).p_value < 0.05 for seed in range(trials)])
    assert abs(rejected - 0.05) < 3 * math.sqrt(0.05 * 0.95 / trials)
    better = [computed(PairedAUC, auc_columns(seed, rows=400, gain=0.5)) for seed in range(50)]
    assert all(one.p_value < 0.05 and one.ci95_low > 0 for one in better)


def test_models_that_order_alike() -> None:
    columns = auc_columns(1, rows=200)
    columns["scores_b"] = np.exp(columns["scores_a"])
    found = computed(PairedAUC, columns)
    assert (found.difference, found.standard_error, found.p_value) == (0, 0, 1)
    with_users = computed(PairedUserAUC, columns | {"user_ids": np.arange(200) % 9})
    assert (with_users.difference, with_users.p_value, with_users.users_changed) == (0, 1, 0)


def test_undefined_figures_are_nan() -> None:
    one_class = computed(PairedAUC, {"scores_a": np.zeros(2), "scores_b": np.zeros(2), "labels": np.ones(2)})
    assert math.isnan(one_class.auc_a) and math.isnan(one_class.p_value)
    one_positive = computed(
        PairedAUC,
        {"scores_a": np.array([0, 1, 2]) / 1, "scores_b": np.array([1, 0, 2]) / 1, "labels": np.array([0, 1, 0])},
    )
    assert (one_positive.auc_a, one_positive.auc_b) == (0.5, 0.0) and math.isnan(one_positive.p_value)
    # All pairs of one model against none of the other: no spread to judge the difference by.
    columns = {
        "scores_a": np.array([0.0, 0, 1, 1]),
        "scores_b": np.array([1.0, 1, 0, 0]),
        "labels": np.array([0, 0, 1, 1]),
    }
    assert computed(PairedAUC, columns).difference == 1 and math.isnan(computed(PairedAUC, columns).p_value)
    nobody = computed(PairedUserAUC, columns | {"user_ids": np.arange(4)})
    assert nobody.users_scored == 0 and math.isnan(nobody.uauc_a) and math.isnan(nobody.p_value)


@pytest.mark.parametrize("weighted", [False, True])
def test_uauc_difference_is_that_of_the_single_metrics(weighted: bool) -> None:
    for seed in range(20):
        columns = random_columns(seed, rows=600)
        if weighted:
            columns["weights"] = np.random.default_rng(seed).exponential(size=600)
        found = computed(PairedUserAUC, columns, replicates=20, flips=20)
        others = {name: column for name, column in columns.items() if not name.startswith("scores")}
        single = []
        for name in ("scores_a", "scores_b"):
            alone = UserAUC()
            alone.update(columns[name], **others)
            single.append(alone.compute())
        assert (found.uauc_a, found.uauc_b) == (single[0].uauc, single[1].uauc)
        assert found.difference == single[0].uauc - single[1].uauc
        assert found.users_scored == single[0].users_scored


def test_uauc_interval_and_test_find_a_better_model() -> None:
    better = [computed(PairedUserAUC, random_columns(seed, rows=3000, gain=0.6), flips=999) for seed in range(10)]
    assert all(one.p_value < 0.05 and one.ci95_low > 0 for one in better)
    alike = [computed(PairedUserAUC, random_columns(seed, rows=1000), flips=199, replicates=200) for seed in range(200)]
    level = np.mean([one.p_value <= 0.05 for one in alike])
    covered = np.mean([one.ci95_low <= 0 <= one.ci95_high for one in alike])
    # Three binomial standard deviations around the nominal levels.
    assert abs(level - 0.05) < 3 * math.sqrt(0.05 * 0.95 / 200)
    assert abs(covered - 0.95) < 3 * math.sqrt(0.05 * 0.95 / 200)


@pytest.mark.parametrize("make", [PairedAUC, PairedUserAUC])
def test_bit_identical_for_any_partition_and_merge_order(make: type, partitions) -> None:
    columns = random_columns(3, rows=1500)
    if make is PairedAUC:
        del columns["user_ids"]
    whole = computed(make, columns)
    for state in partitions(make, columns):
        assert state.compute() == whole


def test_the_model_with_refused_scores_is_named() -> None:
    with pytest.raises(ValueError, match=r"^scores_b: 1 of 2 values are not finite, first at index 1 \(nan\)$"):
        PairedAUC().update([0.5, 0.5], [0.5, math.nan], [0, 1])
