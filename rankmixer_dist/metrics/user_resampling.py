"""How sure a figure over users is: the bootstrap by user, and a test by flipping signs of differences.

Random numbers are a function of the user's id, the replicate and the seed alone, and sums are of whole numbers: neither
the order of users, nor how they were split and merged, shows in a single bit.
"""

import math
from dataclasses import dataclass
from typing import Self

import numpy as np
from numpy.typing import NDArray

from rankmixer_dist.metrics.keys import MIX_STEP, mixed, user_keys

UNITS_PER_ONE = 1 << 20
MAX_TOTAL = 2.0**40
"""What a user counts is rounded to 1e-6, and the sums over users stay below this: both fit 64 bits."""

# Sums of 2**22 numbers of 26 bits, each taken a few times, are exact in float64, and so are those of what is above the
# 26 bits, because of MAX_TOTAL. 32 MB of random factors.
HALF_BITS = 26
CHUNK_FACTORS = 1 << 22
REPLICATES_OF_HASH = 4
FLIPS_OF_HASH = 64
EXACT_USERS = 16


def _poisson_counts() -> NDArray[np.float64]:
    """A count for each of 2**16 equally likely numbers: Poisson with mean 1, its probabilities to 2**-16."""
    probabilities = [math.exp(-1) / math.factorial(count) for count in range(12)]
    middles = (np.arange(1 << 16) + 0.5) / (1 << 16)
    return np.searchsorted(np.cumsum(probabilities), middles).astype(np.float64)


POISSON_COUNTS = _poisson_counts()


@dataclass(frozen=True)
class BootstrapResult:
    """Sampling error of a ratio of sums over users; NaN with fewer than two users.

    Attributes:
        standard_error: standard deviation of the replicates.
        ci95_low, ci95_high: their percentiles 2.5 and 97.5.
    """

    standard_error: float
    ci95_low: float
    ci95_high: float


class UserBootstrap:
    """Mergeable bootstrap by user of sum_u numerator_u / sum_u denominator_u, in 16 bytes a replicate.

    The Poisson bootstrap (Chamandy et al., Estimating Uncertainty for Massive Data Streams, Google 2012): in each
    replicate a user counts a Poisson(1) number of times, which for many users is drawing them with replacement, and
    needs to know nothing of the others. A replicate in which no user counts is left out.

    Args:
        replicates: how many.
        seed: another one gives other random numbers.
    """

    def __init__(self, replicates: int = 1000, seed: int = 0) -> None:
        self._seed = seed
        self._users = 0
        self._sums = np.zeros((2, replicates), np.int64)

    def update(
        self, user_ids: NDArray[np.int64], numerators: NDArray[np.float64], denominators: NDArray[np.float64]
    ) -> None:
        """Add users that were not added before: columns [users], taken to 1e-6, so that the weights behind them should
        not be much smaller than 1.

        Raises:
            ValueError: denominators whose sum is 2**40 or more.
        """
        units = np.stack([whole_units(numerators), whole_units(denominators)])
        replicates = self._sums.shape[1]
        for chunk in _chunks(len(user_ids), replicates):
            hashes = user_hashes(user_ids[chunk], self._seed, -(-replicates // REPLICATES_OF_HASH))
            # [hashes, users, 4 replicates]
            counts = POISSON_COUNTS[hashes[..., None].view(np.uint16)]
            sums = exact_products(units[:, chunk], counts)
            self._sums += sums.swapaxes(0, 1).reshape(2, -1)[:, :replicates]
        self._users += len(user_ids)

    def merge(self, other: Self) -> None:
        """Add the users of another state, which are different ones.

        Raises:
            ValueError: a state with other replicates or another seed.
        """
        if (self._seed, self._sums.shape) != (other._seed, other._sums.shape):
            raise ValueError("bootstrap: states of different seeds or numbers of replicates cannot be merged")
        self._sums = self._sums + other._sums
        self._users += other._users

    def compute(self) -> BootstrapResult:
        """Standard error and interval over all users so far."""
        numerators, denominators = self._sums[:, self._sums[1] > 0]
        if self._users < 2 or len(numerators) < 2:
            return BootstrapResult(math.nan, math.nan, math.nan)
        values = np.sort(numerators / denominators)
        low, high = np.quantile(values, [0.025, 0.975])
        return BootstrapResult(float(np.std(values, ddof=1)), float(low), float(high))


def sign_flip_p_value(
    user_ids: NDArray[np.int64], differences: NDArray[np.float64], *, flips: int = 9999, seed: int = 0
) -> float:
    """Two-sided p-value of sum_u difference_u: how often it is as far from 0 when users' signs are flipped at random.

    Under the hypothesis that two models are alike, each user's difference is as likely with either sign. Then the test
    holds its level with any number of users, their sizes and differences as unlike as they are, which a bootstrap or a
    normal approximation does for many users only. With up to 16 users that differ all 2**16 flips are taken; with more,
    `flips` random ones, the one that was seen among them: p is at least 1 / (flips + 1).

    Args:
        user_ids, differences: [users], taken to 1e-6.
    """
    units = whole_units(differences)
    user_ids, units = user_ids[units != 0], units[units != 0]
    seen = abs(int(units.sum()))
    if len(units) <= EXACT_USERS:
        signs = 2 * ((np.arange(1 << len(units))[:, None] >> np.arange(len(units))) & 1) - 1
        return float(np.mean(np.abs(signs @ units) >= seen))
    kept = np.zeros(flips, np.int64)
    for chunk in _chunks(len(user_ids), flips):
        hashes = user_hashes(user_ids[chunk], seed, -(-flips // FLIPS_OF_HASH))
        # [hashes, users, 64 flips]
        is_kept = np.unpackbits(hashes[..., None].view(np.uint8), axis=-1).astype(np.float64)
        kept += exact_products(units[None, chunk], is_kept).reshape(-1)[:flips]
    flipped = 2 * kept - int(units.sum())
    return (1 + int(np.count_nonzero(np.abs(flipped) >= seen))) / (1 + flips)


def _chunks(users: int, replicates: int) -> list[slice]:
    step = max(1, CHUNK_FACTORS // max(1, replicates))
    return [slice(start, start + step) for start in range(0, users, step)]


def whole_units(values: NDArray[np.float64]) -> NDArray[np.int64]:
    """Values [users] as whole multiples of 2**-20.

    Raises:
        ValueError: values whose absolute sum is 2**40 or more.
    """
    if np.abs(values).sum() >= MAX_TOTAL:
        raise ValueError("weights: their sum is too large to resample users; divide all weights by the same number")
    return np.rint(values * UNITS_PER_ONE).astype(np.int64)


def user_hashes(user_ids: NDArray[np.int64], seed: int, hashes: int) -> NDArray[np.uint64]:
    """Random bits [hashes, users]: for each user a SplitMix64 stream that starts at the user's key and the seed."""
    starts = mixed(user_keys(user_ids) ^ mixed(np.array([seed], np.int64).view(np.uint64)))
    return mixed(starts + MIX_STEP * np.arange(hashes, dtype=np.uint64)[:, None])


def exact_products(units: NDArray[np.int64], factors: NDArray[np.float64]) -> NDArray[np.int64]:
    """sum over users of units [columns, users] times small whole factors [hashes, users, n]: [hashes, columns, n].

    The matrix product of floats, which is the fast one, of halves that it sums without rounding.
    """
    low = units & ((1 << HALF_BITS) - 1)
    high = units >> HALF_BITS
    sums = (np.concatenate([high, low]).astype(np.float64) @ factors).astype(np.int64)
    return (sums[:, : len(units)] << HALF_BITS) + sums[:, len(units) :]
