"""Ids that are sent to their owners a step ahead change no bit, in no sharding."""

import torch

from tests.distributed.outcomes import trained
from tests.distributed.test_ranks_match_one import MIXED

PARTS = ("dense", "moments", "tables", "sums")


def test_a_run_that_looks_ahead_is_the_same_run(launch, small_config):
    cases = {
        f"{name}-{ahead}": [f"sparse.look_ahead={str(ahead).lower()}", "train.max_steps=30", *overrides]
        for name, overrides in {"planned": [], "mixed": MIXED}.items()
        for ahead in (True, False)
    }
    runs = trained(launch, small_config, 2, cases)
    for name in ("planned", "mixed"):
        ahead, behind = runs[f"{name}-True"], runs[f"{name}-False"]
        assert len(ahead["losses"]) == 30  # across the end of an epoch
        assert torch.equal(ahead["losses"], behind["losses"])
        for part in PARTS:
            assert ahead[part].keys() == behind[part].keys()
            assert all(torch.equal(tensor, behind[part][key]) for key, tensor in ahead[part].items())
