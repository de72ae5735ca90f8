"""Where a step's time goes, without making the device wait for the clock."""

from collections import defaultdict

import torch

from rankmixer_dist.parallel.spans import Mark, Spans, mark


class Stopwatch:
    """Sums the seconds between marks by name; on CUDA the marks are events, read when the totals are asked for."""

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._spans: dict[str, Spans] = defaultdict(Spans)
        self._last: Mark = 0.0
        self.start()

    def start(self) -> None:
        """The next span begins now."""
        self._last = mark(self._device)

    def lap(self, name: str) -> None:
        """Counts the time since the last mark for `name`."""
        now = mark(self._device)
        self._spans[name].add(self._last, now)
        self._last = now

    def totals(self) -> dict[str, float]:
        """Seconds by name since the last call; waits for the device."""
        seconds = {name: spans.seconds() for name, spans in self._spans.items()}
        self._spans.clear()
        return seconds
