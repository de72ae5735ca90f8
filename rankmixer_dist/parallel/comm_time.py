"""How long a step's collectives were under way, read off torch's profiler."""

import os
from types import TracebackType
from typing import Self

os.environ.setdefault("KINETO_LOG_LEVEL", "6")  # else each measurement prints two lines

import torch
from torch.profiler import ProfilerActivity, profile


class CommTimer:
    """Times the collectives of a `with` block: TorchRec's, DeepSpeed's and our own, as gloo or NCCL carry them out.

    `seconds` is summed over the collectives, waiting for the other ranks included; what overlaps with computation or
    with each other counts in full, so it is an upper bound of what better overlap could save. Profiling costs a few
    milliseconds: measure a step now and then, not all.
    """

    def __init__(self, device: torch.device) -> None:
        on_gpu = device.type == "cuda"
        self._prefix = "nccl" if on_gpu else "gloo:"
        self._profile = profile(activities=[ProfilerActivity.CUDA if on_gpu else ProfilerActivity.CPU])
        self.seconds = 0.0

    def __enter__(self) -> Self:
        self._profile.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._profile.stop()
        assert self._profile.profiler is not None
        results = self._profile.profiler.kineto_results  # the raw events: aggregating them costs more than the step
        assert results is not None
        events = results.events()
        self.seconds = sum(event.duration_ns() for event in events if event.name().startswith(self._prefix)) / 1e9
