"""When a loss counts as out of its range, and the peak that MFU is a share of."""

import math

import numpy as np
import pytest
import torch

from rankmixer_dist.batch import Batch, JaggedIds
from rankmixer_dist.train.loss_range import LossRange, label_counts
from rankmixer_dist.train.peak import Peak, measured_peak

LOG2 = math.log(2)


def lines_of(rate, logit_of, *, rows=128, lines=2000, seed=1):
    """Summed loss and counts of lines of `rows` rows each, by a model with these logits."""
    random = np.random.default_rng(seed)
    for line in range(lines):
        labels = random.random(rows) < rate
        logits = logit_of(random, rows, line)
        losses = np.logaddexp(0, logits) - labels * logits
        yield losses.sum(), rows, labels.sum()


def first_out(rate, lines):
    judge = LossRange(["click"], [rate], speaks=False)
    for step, (loss, known, positives) in enumerate(lines, start=1):
        if judge.judge(step, [loss], [[known], [positives]]):
            return step
    return None


@pytest.mark.parametrize("rate", [0.5, 0.06, 0.001, 1e-4])
def test_noise_is_no_divergence(rate):
    """Lines of 128 rows with few positives or none, by a model that is off by a factor of three either way."""
    start = math.log(rate / (1 - rate))
    noisy = lines_of(rate, lambda random, rows, line: start + random.normal(0, 1.1, rows))
    assert first_out(rate, noisy) is None


@pytest.mark.parametrize(("scale", "within"), [(10, 20), (100, 1)])
@pytest.mark.parametrize("rate", [0.5, 0.06])
def test_logits_that_explode_are_found(rate, scale, within):
    found = first_out(rate, lines_of(rate, lambda random, rows, line: random.normal(0, scale, rows), lines=50))
    assert found is not None and found <= within


def test_a_divergence_begins_where_it_begins_and_ends_where_it_ends():
    judge = LossRange(["a", "b"], [0.5, 0.5], speaks=False)
    out = []
    for step in range(1, 9):
        loss = 400.0 if step in (4, 5) else 100 * LOG2
        out.append(judge.judge(step, [100 * LOG2, loss], [[100, 100], [50, 50]]))
    assert out == [[], [], [], ["b"], ["b"], [], [], []]


def test_it_is_told_once_with_figures(capfd):
    judge = LossRange(["finish", "like"], [0.5, 0.25], speaks=True)
    for step in (10, 20):
        judge.judge(step, [100 * LOG2, 5000.0], [[100, 100], [50, 25]])
    said = capfd.readouterr().err
    assert said.count("\n") == 1
    assert said.startswith(
        "warning: step 10: the loss left its range: like 50, where predicting its share of positives, 25.00%, loses "
        "0.5623; the run may have diverged: lower dense.lr or sparse.lr"
    )
    LossRange(["like"], [0.25], speaks=False).judge(10, [5000.0], [[100], [25]])
    assert not capfd.readouterr().err


def test_lines_without_rows_or_labels_are_in_range():
    judge = LossRange(["click"], [0.1], speaks=True)
    assert judge.judge(1, [0.0], [[0.0], [0.0]]) == []


def test_rows_are_counted_by_weight_and_unknown_labels_are_not():
    none = torch.zeros(4, dtype=torch.int64)
    batch = Batch(
        row_id_B=none,
        user_id_B=none,
        timestamp_B=none,
        weight_B=torch.tensor([1.0, 2.0, 1.0, 0.0]),
        labels_BK=torch.tensor([[1.0, torch.nan], [1.0, 0.0], [0.0, 1.0], [torch.nan, 1.0]]),
        numerics_BN=torch.zeros(4, 0),
        ids=JaggedIds.on_host((), none[:0], torch.zeros(0, 4, dtype=torch.int32)),
        global_weight=4.0,
    )
    assert label_counts(batch).tolist() == [[4.0, 3.0], [3.0, 1.0]]


def test_a_rate_beyond_the_peak_takes_it_again():
    peak = Peak(torch.device("cpu"), torch.float32)
    real = measured_peak(torch.device("cpu"), torch.float32)
    assert 0 < peak.share(real * 1e-3) < 0.1
    peak._flops = 1.0  # as if the machine had been busy
    assert peak.share(real * 1e-3) < 0.1  # measured again, not merely raised to the rate
    assert peak.share(1e30) == 1.0  # no measurement comes near: the rate itself is what the machine can do
    assert peak.share(0.5e30) == 0.5
