"""A signal to stop, which reaches some rank at some moment, as one answer on all ranks at the same step."""

import os
import signal
from types import FrameType, TracebackType
from typing import Any, Self

import torch
import torch.distributed as dist

from rankmixer_dist.parallel.stop_guard import StopGuard, deaf_limits
from rankmixer_dist.parallel.topology import Topology
from rankmixer_dist.parallel.waiting import collective_waited_for

STOP_SIGNALS = (signal.SIGTERM, signal.SIGUSR1)
"""Which ask a run to stop after the step it is in."""

_left_under_way: list[Any] = []
"""Groups that a failing rank leaves while an exchange is under way. Gloo frees a group only after its last exchange,
which the other ranks may never come to; so the failing rank would not end, and the launcher would not notice."""


class StopRequest:
    """Turns SIGTERM and SIGUSR1 into a flag for the length of a `with` block, which all ranks enter and leave together.

    launch/torchrun.py passes both on to its ranks, torchrun and the deepspeed launcher SIGTERM, and all kill them 30 s
    later (torchrun: `--shutdown_timeout`). Only the main thread may enter, since only it may handle signals.

    The block's end puts the former handlers back, unless a signal has come: then the ranks are on their way out, which
    a second signal, or the same one come late, must not cut short.

    Until the ranks have agreed, a rank that has the signal and does not come back to Python ends: see `StopGuard`.
    """

    def __init__(self, topology: Topology) -> None:
        self._topology = topology
        self._asked = self._agreed = False
        self._group: Any = None
        self._flag = torch.zeros(1, dtype=torch.int32)
        self._work: Any = None
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

        It comes from the flags as they were at the previous call, so that their exchange takes place behind a step;
        once True it stays True.
        """
        if self._group is None:
            self._agreed = self._asked
        elif self._work is not None:
            self._work.wait()
            self._agreed, self._work = bool(self._flag), None
        if self._agreed:
            self._guard.end()
        if self._group is not None and not self._agreed:
            self._flag.fill_(int(self._asked))
            self._work = dist.all_reduce(self._flag, dist.ReduceOp.MAX, group=self._group, async_op=True)
        return self._agreed

    def _on_signal(self, number: int, frame: FrameType | None) -> None:
        self._asked = True
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
