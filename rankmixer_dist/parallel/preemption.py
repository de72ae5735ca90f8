"""A signal to stop, which reaches some rank at some moment, as one answer on all ranks at the same step."""

import os
import signal
import time
from types import FrameType, TracebackType
from typing import Any, Self

import torch
import torch.distributed as dist

from rankmixer_dist.command_line import rank_is_told_to_stop
from rankmixer_dist.parallel.stop_guard import StopGuard, deaf_limits
from rankmixer_dist.parallel.topology import Topology
from rankmixer_dist.parallel.waiting import collective_waited_for

STOP_SIGNALS = (signal.SIGTERM, signal.SIGUSR1)
"""Which ask a run to stop after the step it is in."""

_ASK_EVERY_S, _MOST_STEPS = 0.1, 16
"""How long a signal may go unheard, and for how many steps, in case they become slow all of a sudden."""

_left_under_way: list[Any] = []
"""Groups that a failing rank leaves while an exchange is under way. Gloo frees a group only after its last exchange,
which the other ranks may never come to; so the failing rank would not end, and the launcher would not notice."""


class StopRequest:
    """Turns SIGTERM and SIGUSR1 into a flag for the length of a `with` block, which all ranks enter and leave together.

    launch/torchrun.py passes both on to its ranks, torchrun and DeepSpeed's `launch.py` of a host SIGTERM, and all kill
    them 30 s later (torchrun: `--shutdown_timeout`). The `deepspeed` command above `launch.py` passes nothing on, so on
    one host ranks send themselves SIGTERM once it is gone (`launched.end_with_launcher`). Only the main thread may
    enter, since only it may handle signals.

    The ranks ask one another once a step, or every few steps where steps are short: at most `_ASK_EVERY_S` apart by the
    slowest rank's time a step, which travels with the flags.

    The block's end puts the former handlers back, unless a signal has come: then the ranks are on their way out, which
    a second signal, or the same one come late, must not cut short.

    Until the ranks have agreed, a rank that has the signal and does not come back to Python ends: see `StopGuard`.
    """

    def __init__(self, topology: Topology) -> None:
        self._topology = topology
        self._asked = self._agreed = False
        self._group: Any = None
        self._told = torch.zeros(2, dtype=torch.float64)  # the largest of the ranks': whether asked; seconds a step
        self._work: Any = None
        self._step = self._asks_at = 0
        self._clock = (0, time.perf_counter())  # step and time of the last exchange
        self._guard = StopGuard(topology.rank, deaf_limits(os.environ), collective_waited_for)

    def __enter__(self) -> Self:
        if self._topology.world_size > 1:
            self._group = dist.new_group(backend="gloo")
        self._before = {number: signal.signal(number, self._on_signal) for number in STOP_SIGNALS}
        self._guard.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._guard.end()
        if not self._agreed and not self._asked:
            for number, handler in self._before.items():
                signal.signal(number, handler)
        self._close(failed=error is not None)

    def agreed(self) -> bool:
        """Whether to stop now: the same answer on all ranks, each of which calls this once a step.

        It comes from the flags as they were at a call before, so that their exchange takes place behind a step; once
        True it stays True.
        """
        self._step += 1
        if self._group is None:
            self._agreed = self._asked
        elif self._work is not None:
            self._work.wait()
            self._work = None
            asked, step_s = self._told.tolist()
            self._agreed = asked > 0
            self._asks_at = self._clock[0] + max(1, min(_MOST_STEPS, int(_ASK_EVERY_S / max(step_s, 1e-6))))
        if self._agreed:
            self._guard.end()
        elif self._group is not None and self._step >= self._asks_at:
            self._ask()
        return self._agreed

    def _ask(self) -> None:
        (step, began), now = self._clock, time.perf_counter()
        self._clock = (self._step, now)
        self._told[0], self._told[1] = float(self._asked), (now - began) / (self._step - step)
        self._work = dist.all_reduce(self._told, dist.ReduceOp.MAX, group=self._group, async_op=True)

    def _on_signal(self, number: int, frame: FrameType | None) -> None:
        self._asked = True
        rank_is_told_to_stop()
        self._guard.heard()

    def _close(self, *, failed: bool) -> None:
        if self._group is None:
            return
        if self._work is not None:
            if failed:
                _left_under_way.append(self._group)
                return
            self._work.wait()
            self._work = None
        dist.destroy_process_group(self._group)
        self._group = None
