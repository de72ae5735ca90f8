"""Windows of time: their names, and the mean of their figures."""

import numpy as np
import pytest

from rankmixer_dist.metrics import TaskMetrics, Window, mean_over_windows
from rankmixer_dist.metrics.windows import iso

DAY_MS = 86_400_000
FIRST = Window(1_767_225_600_000, 1_767_225_600_000 + DAY_MS)


def rows(seed, count=200):
    random = np.random.default_rng(seed)
    return random.random(count).astype(np.float32), random.random(count) < 0.3, random.integers(0, 20, count)


def figures(seed=1):
    found = {}
    for task, its_seed in (("like", seed), ("skip", seed + 100)):
        state = TaskMetrics()
        state.update(*rows(its_seed))
        found[task] = state.compute()
    return found


def test_the_mean_is_over_windows_that_have_the_figure():
    first, second = figures(), figures(seed=5)
    positives = TaskMetrics()
    positives.update([0.5, 0.6], [1, 1], [1, 2])
    only_positives = {"like": positives.compute()}
    mean = mean_over_windows([first, second, only_positives])
    assert mean["like"]["auc"] == pytest.approx((first["like"]["auc"] + second["like"]["auc"]) / 2, rel=1e-15)
    assert mean["skip"]["uauc"] == pytest.approx((first["skip"]["uauc"] + second["skip"]["uauc"]) / 2, rel=1e-15)
    assert mean_over_windows([only_positives])["like"] == {"auc": None, "uauc": None}


def test_names_and_times():
    assert (FIRST.name, str(FIRST)) == ("20260101T000000Z", "2026-01-01T00:00:00Z to 2026-01-02T00:00:00Z")
    assert iso(FIRST.start + 1) == "2026-01-01T00:00:00.001Z"
