"""Tells when the loss leaves its range: when the model is far worse than the share of positives that it began with."""

import math
import sys
from collections.abc import Sequence

import torch
from torch import Tensor

from rankmixer_dist.batch import Batch
from rankmixer_dist.train.non_finite import ADVICE

_TIMES = 3.0
"""A loss is out of range from so many times the entropy of a task's labels on. A model that predicts the share of
positives has one entropy; one that learns has less."""
_RARER_ROWS = 20
"""Rows of a task's rarer label that a loss is a mean over, at least: a few surprising rows are no divergence."""


class LossRange:
    """Compares each task's loss with the loss, on the same rows, of predicting the task's share of positives.

    Rows are gathered over log lines until enough of them have the rarer label; a loss that would be out of range even
    with that many rows is told at once.

    Args:
        base_rates: share of positives of each task, between 0 and 1.
        speaks: whether this rank says what it finds; all ranks find the same.
    """

    def __init__(self, tasks: Sequence[str], base_rates: Sequence[float], *, speaks: bool) -> None:
        assert all(0 < rate < 1 for rate in base_rates)
        self._tasks, self._rates = tuple(tasks), tuple(base_rates)
        self._speaks, self._told = speaks, False
        self._rows = [0.0] * len(self._tasks)
        self._excess = [0.0] * len(self._tasks)

    def judge(self, step: int, losses_K: Sequence[float], counts_2K: Sequence[Sequence[float]]) -> list[str]:
        """The tasks whose loss is out of range, which the first call that finds one tells.

        Args:
            step: the newest.
            losses_K: summed over the rows since the last call, all ranks'.
            counts_2K: `label_counts` of the same rows.
        """
        found = []
        for place, (loss, known, positives) in enumerate(zip(losses_K, *counts_2K, strict=True)):
            rate = self._rates[place]
            uninformed = -positives * math.log(rate) - (known - positives) * math.log1p(-rate)
            entropy = -rate * math.log(rate) - (1 - rate) * math.log1p(-rate)
            enough = _RARER_ROWS / min(rate, 1 - rate)
            self._rows[place] += known
            self._excess[place] += loss - uninformed
            if self._excess[place] > (_TIMES - 1) * entropy * max(self._rows[place], enough):
                found.append((self._tasks[place], loss / known if known else math.nan, rate, entropy))
            if self._rows[place] >= enough:
                self._rows[place] = self._excess[place] = 0.0
        if found and self._speaks and not self._told:
            self._told = True
            text = ", ".join(
                f"{task} {loss:.4g}, where predicting its share of positives, {rate:.2%}, loses {entropy:.4g}"
                for task, loss, rate, entropy in found
            )
            told = f"the loss left its range: {text}; the run may have diverged: {ADVICE} (told once)"
            print(f"warning: step {step}: {told}", file=sys.stderr, flush=True)
        return [task for task, *_ in found]


def label_counts(batch: Batch) -> Tensor:
    """[2, K] summed weights of this rank's rows: with a known label, and with a positive one."""
    weight_B1 = batch.weight_B.unsqueeze(1).to(torch.float32)
    known_BK = weight_B1 * ~batch.labels_BK.isnan()
    return torch.stack([known_BK.sum(dim=0), (weight_B1 * batch.labels_BK.nan_to_num(0.0)).sum(dim=0)])
