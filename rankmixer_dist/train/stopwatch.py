"""Where a step's time goes, without making the device wait for the clock."""

import time
from collections import defaultdict

import torch


class Stopwatch:
    """Sums the seconds between marks by name; on CUDA the marks are events, read when the totals are asked for."""

    def __init__(self, device: torch.device) -> None:
        self._on_gpu = device.type == "cuda"
        self._spans: list[tuple[str, float | torch.cuda.Event, float | torch.cuda.Event]] = []
        self._last: float | torch.cuda.Event = 0.0
        self.start()

    def start(self) -> None:
        """The next span begins now."""
        self._last = self._now()

    def lap(self, name: str) -> None:
        """Counts the time since the last mark for `name`."""
        now = self._now()
        self._spans.append((name, self._last, now))
        self._last = now

    def totals(self) -> dict[str, float]:
        """Seconds by name since the last call; waits for the device."""
        if self._on_gpu:
            torch.cuda.synchronize()
        seconds: dict[str, float] = defaultdict(float)
        for name, start, end in self._spans:
            if isinstance(start, float) and isinstance(end, float):
                seconds[name] += end - start
            else:
                assert isinstance(start, torch.cuda.Event) and isinstance(end, torch.cuda.Event)
                seconds[name] += start.elapsed_time(end) / 1e3
        self._spans.clear()
        return dict(seconds)

    def _now(self) -> float | torch.cuda.Event:
        if not self._on_gpu:
            return time.perf_counter()
        event = torch.cuda.Event(enable_timing=True)
        event.record()
        return event
