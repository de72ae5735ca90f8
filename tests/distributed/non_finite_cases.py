"""Run on ranks: trains configs on rows of which some are made to overflow, and tells how each run ended."""

import dataclasses
import json
import math
import sys
from pathlib import Path

import torch

from data_pipeline import reading
from rankmixer_dist.command_line import run_verb
from rankmixer_dist.config import load_config
from rankmixer_dist.errors import UserError
from rankmixer_dist.models.ranker import Ranker
from rankmixer_dist.parallel.topology import all_gather_objects, any_over_ranks, process_group
from rankmixer_dist.verbs import train

OVERFLOWS, EXPLODES = math.inf, -math.inf
"""Marks in a row's first numeric, which the model itself would clip: the row's logits are infinite, or finite with
gradients that are not."""


class Marked:
    """A loader whose rows of these ids are marked, or that leaves out the batches with any of them, on all ranks."""

    def __init__(self, loader, row_ids, *, mark=None):
        self._loader, self._mark = loader, mark
        self._row_ids = torch.tensor(row_ids, dtype=torch.int64)
        self.steps_per_epoch, self.rows = loader.steps_per_epoch, loader.rows

    def epoch(self, position):
        for batch, after in self._loader.epoch(position):
            found = torch.isin(batch.row_id_B, self._row_ids)
            if self._mark is not None:
                batch.numerics_BN[found, 0] = self._mark
            elif any_over_ranks(found.any()):
                continue
            yield dataclasses.replace(batch), after


def mark_and_overflow():
    """Lets the model see the marks."""
    plain = Ranker.forward

    def forward(self, embedded, numerics_BN, rows=None):
        scored = plain(self, embedded, numerics_BN, rows)
        factor_B = torch.where(numerics_BN[:, 0] == OVERFLOWS, math.inf, 1.0)
        if (numerics_BN[:, 0] == EXPLODES).any():
            scored.logits_BK.register_hook(lambda gradient: gradient * math.inf)
        return scored._replace(logits_BK=scored.logits_BK * factor_B.unsqueeze(-1))

    Ranker.forward = forward


def main(arguments: list[str]) -> None:
    """Takes a config file and a JSON list of cases, of which the last may end the process as launch/train.py does.

    A case: overrides, rows (ids), what (`overflow`, `explode` or `absent`).
    """
    mark_and_overflow()
    path, cases = arguments
    open_split = reading.open_split
    with process_group() as topology:
        *first, last = json.loads(cases)
        for case in (*first, last):
            mark = {"overflow": OVERFLOWS, "explode": EXPLODES, "absent": None}[case["what"]]
            reading.open_split = lambda *a, case=case, mark=mark, **k: Marked(
                open_split(*a, **k), case["rows"], mark=mark
            )
            error = None
            try:
                train.run_on(load_config(path, case["overrides"]), topology)
            except UserError as stopped:
                if case is last:
                    raise
                error = str(stopped)
            errors = all_gather_objects(error)
            if topology.is_first:
                print(json.dumps({"errors": errors}), flush=True)


if __name__ == "__main__":
    sys.path.insert(0, str(Path(__file__).parents[2]))
    run_verb(main)
