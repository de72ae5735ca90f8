"""Figures belong to one window and one checkpoint; pooling them is refused."""

import numpy as np
import pytest

from rankmixer_dist.errors import UserError
from rankmixer_dist.metrics import TaskMetrics, Window, WindowMetrics, mean_over_windows
from rankmixer_dist.metrics.windows import iso

DAY_MS = 86_400_000
FIRST = Window(1_767_225_600_000, 1_767_225_600_000 + DAY_MS)
SECOND = Window(FIRST.end, FIRST.end + DAY_MS)


def rows(seed, count=200):
    random = np.random.default_rng(seed)
    return random.random(count).astype(np.float32), random.random(count) < 0.3, random.integers(0, 20, count)


def state(window=FIRST, checkpoint="step-00000001", seed=1):
    metrics = WindowMetrics(window, checkpoint, ["like", "skip"])
    metrics.update("like", *rows(seed))
    metrics.update("skip", *rows(seed + 100))
    return metrics


def test_a_window_has_the_figures_of_its_rows(tmp_path):
    metrics = state()
    metrics.merge(state(seed=2))
    whole = TaskMetrics()
    for seed in (2, 1):
        whole.update(*rows(seed))
    assert metrics.compute()["like"] == whole.compute()
    metrics.save(tmp_path / "state.npz")
    again = WindowMetrics.load(tmp_path / "state.npz")
    assert (again.window, again.checkpoint) == (FIRST, "step-00000001")
    assert again.compute() == metrics.compute()


def test_windows_and_checkpoints_are_not_pooled():
    metrics = state()
    before = metrics.compute()
    with pytest.raises(UserError, match="2026-01-01T00:00:00Z to 2026-01-02T00:00:00Z and .* are not pooled"):
        metrics.merge(state(SECOND))
    with pytest.raises(UserError, match="step-00000001 .* and of step-00000002 .* do not rank against each other"):
        metrics.merge(state(checkpoint="step-00000002"))
    with pytest.raises(UserError, match="do not rank"):
        metrics.merge(WindowMetrics(FIRST, "step-00000001", ["like"]))
    assert metrics.compute() == before


def test_the_mean_is_over_windows_that_have_the_figure():
    first, second = state().compute(), state(SECOND, seed=5).compute()
    only_positives = WindowMetrics(SECOND, "x", ["like"])
    only_positives.update("like", [0.5, 0.6], [1, 1], [1, 2])
    mean = mean_over_windows([first, second, only_positives.compute()])
    assert mean["like"]["auc"] == pytest.approx((first["like"]["auc"] + second["like"]["auc"]) / 2, rel=1e-15)
    assert mean["skip"]["uauc"] == pytest.approx((first["skip"]["uauc"] + second["skip"]["uauc"]) / 2, rel=1e-15)
    assert mean_over_windows([only_positives.compute()])["like"] == {"auc": None, "uauc": None}


def test_names_and_times():
    assert (FIRST.name, str(FIRST)) == ("20260101T000000Z", "2026-01-01T00:00:00Z to 2026-01-02T00:00:00Z")
    assert iso(FIRST.start + 1) == "2026-01-01T00:00:00.001Z"
