"""Run on ranks: trains a config through launch/train.py, and counts what some of its steps do on the first rank.

All tensors are on the CPU here, and all are taken for the device's. Prints a line of JSON.
"""

import json
import os
import sys
import threading
from collections import defaultdict
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[2]))

import torch
from deepspeed.accelerator import get_accelerator

from rankmixer_dist.batch import Batch
from rankmixer_dist.command_line import run_verb
from rankmixer_dist.config import load_config
from rankmixer_dist.parallel.topology import process_group
from rankmixer_dist.train.step import TrainStep
from rankmixer_dist.verbs import train
from tests.rehearsal.census import Census, place

FIRST, LAST = 6, 9
TIMEOUT_S = 1234.0


def main(arguments: list[str]) -> None:
    """Takes a config file and overrides."""
    census = Census(lambda tensor: True)
    watch(census)
    timeouts = watch_groups()
    with process_group(timeout_s=TIMEOUT_S) as topology:
        train.run_on(load_config(arguments[0], arguments[1:]), topology)
        if topology.is_first:
            print(json.dumps(census.take() | {"steps": LAST + 1 - FIRST, "timeouts": timeouts}), flush=True)


def watch_groups() -> dict[str, list[float]]:
    """By place, how many seconds the exchanges of each group may take that is made there from now on."""
    c10d: Any = torch.distributed.distributed_c10d
    make, found = c10d._new_process_group_helper, defaultdict(list)

    def noted(*args: Any, **kwargs: Any) -> Any:
        found[place()].append(kwargs["timeout"].total_seconds())
        return make(*args, **kwargs)

    c10d._new_process_group_helper = noted
    return found


def watch(census: Census) -> None:
    """Lets `census` count steps FIRST to LAST of every run."""
    take_step = TrainStep.take

    def watched(step: TrainStep, batch: Batch, number: int, *args: Any, **kwargs: Any) -> Any:
        if not FIRST <= number <= LAST:
            return take_step(step, batch, number, *args, **kwargs)
        with census:
            census.start()
            result = take_step(step, batch, number, *args, **kwargs)
            census.stop()
        return result

    TrainStep.take = watched
    type(get_accelerator()).synchronize = lambda *args: census.note("sync")
    for name in ("tolist", "numpy"):  # which read the memory of the CPU without an operator
        setattr(torch.Tensor, name, _noted(getattr(torch.Tensor, name), census))


def _noted(read: Any, census: Census) -> Any:
    def noted(tensor: torch.Tensor, *args: Any, **kwargs: Any) -> Any:
        if threading.current_thread() is threading.main_thread():  # the loader's reads ahead
            census.note("read")
        return read(tensor, *args, **kwargs)

    return noted


if __name__ == "__main__":
    os.environ["DS_ACCELERATOR"] = "cpu"
    run_verb(main)
