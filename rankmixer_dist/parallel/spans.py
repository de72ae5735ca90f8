"""Time between pairs of marks, on a GPU without making anybody wait for the clock."""

import time
from collections import deque

import torch

Mark = float | torch.cuda.Event
"""A moment: seconds of the process's clock, or an event in the stream of a GPU."""

_MOST_KEPT = 256


def mark(device: torch.device) -> Mark:
    """This moment, or on a GPU that when the stream comes here."""
    if device.type != "cuda":
        return time.perf_counter()
    event = torch.cuda.Event(enable_timing=True)
    event.record()
    return event


class Spans:
    """Summed time between pairs of marks.

    Events are kept until the GPU has passed them. Beyond a few hundred, those that it has passed are added up and let
    go, so that nobody has to ask for the sum; the GPU's queue of work bounds the others.
    """

    def __init__(self) -> None:
        self._seconds = 0.0
        self._ahead: deque[tuple[torch.cuda.Event, torch.cuda.Event]] = deque()

    def add(self, start: Mark, end: Mark) -> None:
        """Adds the time from `start` to `end`, which came later."""
        if isinstance(start, float) and isinstance(end, float):
            self._seconds += end - start
            return
        assert isinstance(start, torch.cuda.Event) and isinstance(end, torch.cuda.Event)
        self._ahead.append((start, end))
        if len(self._ahead) > _MOST_KEPT:
            self._add_up()

    def seconds(self) -> float:
        """The sum; waits until a GPU has passed all marks."""
        if self._ahead:
            self._ahead[-1][1].synchronize()
        self._add_up()
        return self._seconds

    def __len__(self) -> int:
        """Pairs of events that are kept."""
        return len(self._ahead)

    def _add_up(self) -> None:
        while self._ahead and self._ahead[0][1].query():
            start, end = self._ahead.popleft()
            self._seconds += start.elapsed_time(end) / 1e3
