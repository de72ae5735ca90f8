"""A measured figure beside the limit or peer that was measured in the same run."""

import statistics
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass


@dataclass(frozen=True)
class Figure:
    """`value` and `reference` in `unit`; `against` says what the reference is."""

    name: str
    value: float
    unit: str
    reference: float
    against: str


def interleaved(runs: Mapping[str, Callable[[], object]], *, repeats: int = 5) -> dict[str, float]:
    """Median seconds of each run, after one warm-up; taken in turn, so that a drifting machine is fair to all."""
    seconds: dict[str, list[float]] = {name: [] for name in runs}
    for repeat in range(repeats + 1):
        for name, run in runs.items():
            start = time.perf_counter()
            run()
            if repeat:
                seconds[name].append(time.perf_counter() - start)
    return {name: statistics.median(times) for name, times in seconds.items()}
