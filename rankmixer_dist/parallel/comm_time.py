"""How long a step's collectives were under way, read off torch's profiler."""

import os
import time
from types import TracebackType
from typing import Self

os.environ.setdefault("KINETO_LOG_LEVEL", "6")  # else each measurement prints two lines

import torch
from torch.profiler import ProfilerActivity, profile


class CommTimer:
    """Times the collectives of a `with` block: TorchRec's, DeepSpeed's and our own, as gloo or NCCL carry them out.

    `seconds` is summed over the collectives, waiting for the other ranks included; what overlaps with computation or
    with each other counts in full, so it is an upper bound of what better overlap could save. Profiling costs a few
    milliseconds: measure a step now and then, not all. `own_s` is the rest of the block: when none was under way.
    """

    def __init__(self, device: torch.device) -> None:
        on_gpu = device.type == "cuda"
        self._prefix = "nccl" if on_gpu else "gloo:"
        self._profile = profile(activities=[ProfilerActivity.CUDA if on_gpu else ProfilerActivity.CPU])
        self.seconds = self.own_s = 0.0

    def __enter__(self) -> Self:
        self._profile.start()
        self._began = time.perf_counter()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        whole_s = time.perf_counter() - self._began
        self._profile.stop()
        assert self._profile.profiler is not None
        results = self._profile.profiler.kineto_results  # the raw events: aggregating them costs more than the step
        assert results is not None
        collectives = [event for event in results.events() if event.name().startswith(self._prefix)]
        spans = sorted((event.start_ns(), event.start_ns() + event.duration_ns()) for event in collectives)
        self.seconds = sum(end - start for start, end in spans) / 1e9
        self.own_s = max(whole_s - _covered(spans) / 1e9, 0.0)


def _covered(spans: list[tuple[int, int]]) -> int:
    """Length of the union of spans that are sorted by their start."""
    total = reached = 0
    for start, end in spans:
        total += max(end - max(start, reached), 0)
        reached = max(reached, end)
    return total
