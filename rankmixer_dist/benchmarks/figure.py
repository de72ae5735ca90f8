"""A measured figure beside the limit or peer that was measured in the same run."""

import statistics
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch

from rankmixer_dist.benchmarks.device import wait_for

_CPU = torch.device("cpu")


@dataclass(frozen=True)
class Figure:
    """`value` and `reference` in `unit`; `against` says what the reference is."""

    name: str
    value: float
    unit: str
    reference: float
    against: str


def interleaved(
    runs: Mapping[str, Callable[[], object]],
    *,
    repeats: int = 5,
    device: torch.device = _CPU,
    warm_up: int = 1,
    clock: Callable[[], float] = time.perf_counter,
) -> dict[str, float]:
    """Median seconds of each run, after `warm_up` of them; taken in turn, so that a drifting machine is fair to all.

    The clock starts when the device has nothing left to do, and stops when it has done what the run gave it.
    Of `clock`s, `time.process_time` counts the process's own work alone.
    """
    seconds: dict[str, list[float]] = {name: [] for name in runs}
    for repeat in range(repeats + warm_up):
        for name, run in runs.items():
            wait_for(device)
            start = clock()
            run()
            wait_for(device)
            if repeat >= warm_up:
                seconds[name].append(clock() - start)
    return {name: statistics.median(times) for name, times in seconds.items()}
