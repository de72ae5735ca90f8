"""The bootstrap by user and the sign-flip test against closed forms, plain loops and all flips."""

import itertools
import math
import pickle

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from rankmixer_dist.metrics import UserAUC, UserBootstrap
from rankmixer_dist.metrics.user_auc import exact_user_aucs
from rankmixer_dist.metrics.user_resampling import (
    EXACT_USERS,
    POISSON_COUNTS,
    exact_products,
    sign_flip_p_value,
    user_hashes,
)


def random_rows(seed: int, rows: int, users: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    labels = rng.random(rows) < 0.4
    return rng.normal(size=rows) + labels, labels, np.minimum(rng.geometric(3 / users, rows), users) + 10**12


def test_counts_are_poisson() -> None:
    assert POISSON_COUNTS.mean() == 1
    # The probabilities are kept to 2**-16. Seen: 3.1e-5.
    assert POISSON_COUNTS.var() == pytest.approx(1, abs=2e-4)
    hashes = user_hashes(np.arange(20_000), seed=3, hashes=5)
    counts = POISSON_COUNTS[hashes[..., None].view(np.uint16)]
    # Four standard errors of a mean and of a variance of 400,000 Poisson(1) numbers.
    assert abs(counts.mean() - 1) < 4 / math.sqrt(counts.size)
    assert abs(counts.var() - 1) < 4 * math.sqrt(3 / counts.size)
    # Neither neighbouring users nor replicates know of each other: correlations within four standard errors.
    for one, other in ((counts[:, :-1], counts[:, 1:]), (counts[:-1], counts[1:]), (counts[..., :-1], counts[..., 1:])):
        assert abs(np.corrcoef(one.ravel(), other.ravel())[0, 1]) < 4 / math.sqrt(one.size)


@given(st.lists(st.integers(-(2**61), 2**61), min_size=1, max_size=12), st.integers(0, 99))
def test_products_are_exact(units: list[int], seed: int) -> None:
    factors = np.random.default_rng(seed).integers(0, 2, (2, len(units), 3)).astype(np.float64)
    found = exact_products(np.array([units, units[::-1]]) // len(units), factors)
    for block, column in itertools.product(range(2), range(3)):
        for side, own in enumerate((units, units[::-1])):
            chosen = factors[block, :, column].astype(int).tolist()
            expected = sum(u // len(units) * f for u, f in zip(own, chosen, strict=True))
            assert found[block, side, column] == expected


def test_standard_error_is_that_of_the_linearised_ratio() -> None:
    rows = random_rows(0, rows=20_000, users=2000)
    state = UserAUC()
    state.update(*rows)
    users, result = exact_user_aucs(*rows), state.compute()
    influence = users.impressions * (users.auc - result.uauc) / users.impressions.sum()
    linearised = math.sqrt((influence**2).sum())
    found = state.bootstrap(replicates=4000)
    # A standard deviation of 4,000 replicates has a relative standard error of 1.1 %.
    assert found.standard_error == pytest.approx(linearised, rel=0.04)
    assert found.ci95_low == pytest.approx(result.uauc - 1.96 * linearised, abs=0.2 * linearised)
    assert found.ci95_high == pytest.approx(result.uauc + 1.96 * linearised, abs=0.2 * linearised)


def test_the_interval_covers_the_true_uauc_in_95_of_100_samples() -> None:
    # Each user's AUC is Phi(1 / sqrt 2) in expectation, whatever the sizes.
    true_uauc = 0.5 * (1 + math.erf(0.5))
    trials, covered = 300, 0
    for seed in range(trials):
        state = UserAUC()
        state.update(*random_rows(seed, rows=2000, users=300))
        found = state.bootstrap(replicates=400, seed=seed)
        covered += found.ci95_low <= true_uauc <= found.ci95_high
    # Three binomial standard deviations around the nominal level.
    assert abs(covered / trials - 0.95) < 3 * math.sqrt(0.95 * 0.05 / trials)


def test_bit_identical_for_any_partition_of_the_users() -> None:
    rows = random_rows(1, rows=5000, users=800)
    state = UserAUC()
    state.update(*rows)
    whole = state.bootstrap(replicates=101, seed=5)
    assert state.bootstrap(replicates=101, seed=6) != whole
    users = exact_user_aucs(*rows)
    rng = np.random.default_rng(2)
    for _ in range(20):
        parts = []
        for part in np.array_split(rng.permutation(len(users.auc)), rng.integers(1, 9)):
            one = UserBootstrap(101, seed=5)
            one.update(users.user_ids[part], users.auc[part] * users.impressions[part], users.impressions[part])
            parts.append(pickle.loads(pickle.dumps(one)))
        while len(parts) > 1:
            parts[rng.integers(len(parts) - 1)].merge(parts.pop())
        assert parts[0].compute() == whole


def test_too_few_users_and_states_that_do_not_fit() -> None:
    state = UserAUC()
    assert math.isnan(state.bootstrap(10).standard_error)
    state.update([0.1, 0.2], [0, 1], [1, 1])
    assert math.isnan(state.bootstrap(10).ci95_low)
    with pytest.raises(ValueError, match="different seeds or numbers of replicates"):
        UserBootstrap(10).merge(UserBootstrap(10, seed=1))
    with pytest.raises(ValueError, match=r"^weights: their sum is too large to resample users; divide all weights"):
        UserBootstrap(10).update(np.array([1, 2]), np.full(2, 2.0**39), np.full(2, 2.0**39))


DIFFERENCES = st.lists(st.integers(-(2**25), 2**25).map(lambda number: number / 2**20), min_size=1, max_size=8)


@given(DIFFERENCES)
def test_all_flips_of_a_few_users(differences: list[float]) -> None:
    flips = list(itertools.product((-1, 1), repeat=len(differences)))
    sums = [abs(sum(sign * one for sign, one in zip(signs, differences, strict=True))) for signs in flips]
    expected = sum(one >= abs(sum(differences)) for one in sums) / len(flips)
    assert sign_flip_p_value(np.arange(len(differences)), np.array(differences)) == expected


def test_random_flips_agree_with_all_of_them(monkeypatch: pytest.MonkeyPatch) -> None:
    rng = np.random.default_rng(3)
    for shift in (0.0, 0.3, 0.6):
        differences = rng.normal(shift, 1, EXACT_USERS)
        exact = sign_flip_p_value(np.arange(EXACT_USERS), differences)
        with monkeypatch.context() as patched:
            patched.setattr("rankmixer_dist.metrics.user_resampling.EXACT_USERS", 0)
            found = sign_flip_p_value(np.arange(EXACT_USERS), differences, flips=9999, seed=1)
        # Four binomial standard deviations.
        assert abs(found - exact) < 4 * math.sqrt(exact * (1 - exact) / 9999) + 1e-4


def test_the_test_holds_its_level_with_a_few_unlike_users() -> None:
    rng = np.random.default_rng(4)
    trials = 1000
    # Twenty users, one of them as large as all others together: no normal approximation holds.
    sizes = np.append(np.ones(19), 19)
    p_values = [
        sign_flip_p_value(np.arange(20), rng.standard_t(3, 20) * sizes, flips=199, seed=seed) for seed in range(trials)
    ]
    for level in (0.05, 0.2, 0.5):
        # Three binomial standard deviations above the level.
        assert np.mean(np.array(p_values) <= level) < level + 3 * math.sqrt(level * (1 - level) / trials)


def test_neither_order_nor_users_without_a_difference_change_the_p_value() -> None:
    rng = np.random.default_rng(5)
    user_ids, differences = rng.permutation(400), rng.normal(0.05, 1, 400)
    differences[200:] = 0
    expected = sign_flip_p_value(user_ids, differences, flips=500)
    order = rng.permutation(400)
    assert sign_flip_p_value(user_ids[order], differences[order], flips=500) == expected
    assert sign_flip_p_value(user_ids[:200], differences[:200], flips=500) == expected
    assert sign_flip_p_value(user_ids[200:], differences[200:]) == 1.0
