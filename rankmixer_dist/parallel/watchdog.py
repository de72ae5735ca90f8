"""Ends a run in which nothing moves any more, after saying which rank hangs, in what, and with which stack."""

import faulthandler
import os
import tempfile
import threading
import time
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from types import TracebackType
from typing import Self

from rankmixer_dist.command_line import mark_of_rank
from rankmixer_dist.errors import EXIT_STALLED
from rankmixer_dist.parallel.heartbeat import Heartbeat, HeartbeatFiles
from rankmixer_dist.parallel.topology import Topology
from rankmixer_dist.parallel.waiting import collective_waited_for, silent_peers

_MOST_NAMED = 8
_REPORT_S = 10.0
"""How long a report may take to write, should standard error or the folder be what hangs."""
_MOST_HEAD_START_S = 15.0
_LATEST = 2.25
"""Time-outs after its last beat at which a rank has begun to report."""
_SHORTEST_S, _UNWATCHED_S = 600.0, 86400.0
_STDERR = 2


def exchange_limit_s(stall_timeout_s: float | None) -> float:
    """How long an exchange may take in a run that a `Watchdog` with that time-out watches.

    Longer than the watchdog needs to report, and its peers to speak first: NCCL ends a process whose exchange takes too
    long by SIGABRT, amid its report if both had the same limit. At least 10 minutes, for what ranks do before they are
    watched; a day where nobody watches, since a person may stand at a breakpoint.
    """
    if stall_timeout_s is None:
        return _UNWATCHED_S
    return max(_SHORTEST_S, _LATEST * stall_timeout_s + 2 * _MOST_HEAD_START_S + 2 * _REPORT_S)


class Watchdog:
    """Watches a training loop for the length of a `with` block; the loop says by `beat` that it moves on.

    A rank from which no beat came for `timeout_s` seconds reports: one line and the stacks of all its threads, on
    standard error and in `folder/stalled-rank-<rank>.txt`. Then the process ends with `exit_code`, and the launcher
    ends the other ranks. A rank that waits for others, which are behind it or give no sign of life, lets them speak
    first: it reports a quarter of `timeout_s`, at most 15 s, after their time is up, and never later than 2.25
    `timeout_s` after its own last beat.

    A thread that never releases the GIL stops the watching thread too. Then faulthandler's own thread, which needs no
    GIL, writes the stacks on standard error and ends the process with code 1.

    `timeout_s` None watches nothing, as one wants under a debugger: who stands at a breakpoint, or is stopped by
    Ctrl-Z, does not move. `folder` should be shared by all ranks; else they cannot name each other.
    """

    def __init__(
        self, topology: Topology, timeout_s: float | None, folder: Path, exit_code: int = EXIT_STALLED
    ) -> None:
        self._topology, self._timeout_s, self._folder, self._exit_code = topology, timeout_s, folder, exit_code
        self._beat = Heartbeat(topology.rank, 0, 0, "starting", time.time())
        self._beat_clock = time.monotonic()  # as began_at, which is for the other ranks, but never set back
        self._others: list[Heartbeat] = []
        self._over = threading.Event()
        self._threads: list[threading.Thread] = []

    def __enter__(self) -> Self:
        if self._timeout_s is None:
            return self
        self._interval_s = min(self._timeout_s / 20, 2.0)
        self._head_start_s = min(self._timeout_s / 4, _MOST_HEAD_START_S)
        self.beat(self._beat.step, self._beat.doing)
        self._threads.append(threading.Thread(target=self._watch, args=(self._timeout_s,), daemon=True))
        if self._topology.world_size > 1:
            # A thread of its own: a file system that hangs must not stop the one that watches.
            self._threads.append(threading.Thread(target=self._exchange, args=(self._timeout_s,), daemon=True))
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._over.set()
        for thread in self._threads:
            thread.join(_REPORT_S)
        if self._timeout_s is not None:
            faulthandler.cancel_dump_traceback_later()

    def beat(self, step: int, doing: str) -> None:
        """Says that this rank has come to `doing` in `step`; costs about a microsecond.

        All ranks make the same beats in the same order; one that only some ranks make comes last in its step.
        """
        turn = self._beat.turn + 1 if step == self._beat.step else 0
        self._beat = Heartbeat(self._topology.rank, step, turn, doing, time.time())
        self._beat_clock = time.monotonic()

    def _watch(self, timeout_s: float) -> None:
        while True:
            faulthandler.dump_traceback_later(timeout_s, exit=True, file=_STDERR)  # for as long as this thread stands
            if self._over.wait(self._interval_s):
                return
            beat, idle_s = self._beat, time.monotonic() - self._beat_clock
            if idle_s < timeout_s:
                continue
            waits_for = [other for other in self._others if other.is_behind(beat) or self._is_silent(other)]
            if idle_s < timeout_s + self._patience(beat, waits_for, timeout_s):
                continue
            faulthandler.dump_traceback_later(_REPORT_S + timeout_s, exit=True, file=_STDERR)
            self._report(self._line(beat, idle_s, waits_for))
            # The process group ends with this process, so those that wait for it would fail before they can say so.
            linger_s = 0.0 if waits_for or self._topology.world_size == 1 else 2 * self._head_start_s
            if not self._over.wait(linger_s):
                os._exit(self._exit_code)
            return

    def _exchange(self, timeout_s: float) -> None:
        files = HeartbeatFiles(self._folder, rank=self._topology.rank, world_size=self._topology.world_size)
        while True:
            with suppress(OSError):  # a full disk or a hiccup of the network is no reason to fall silent for good
                files.write(self._beat)
                # Only close to the end: a thousand ranks that read each other's files all the time are a burden.
                if time.monotonic() - self._beat_clock > timeout_s - 3 * self._interval_s:
                    self._others = files.read_others()
            if self._over.wait(self._interval_s):
                files.remove_own()
                return

    def _is_silent(self, other: Heartbeat) -> bool:
        return other.silent_s > self._head_start_s

    def _patience(self, beat: Heartbeat, waits_for: Sequence[Heartbeat], timeout_s: float) -> float:
        """Seconds beyond the timeout that a rank grants those it waits for, whose own timeout may have begun later."""
        if not waits_for:
            return 0.0
        began_at = [other.began_at for other in waits_for if not self._is_silent(other)]
        later_s = max(began_at, default=beat.began_at) - beat.began_at
        return min(max(later_s, 0.0), timeout_s) + self._head_start_s

    def _line(self, beat: Heartbeat, idle_s: float, waits_for: Sequence[Heartbeat]) -> str:
        line = (
            f"watchdog: rank {self._with_host(beat.rank)} has not moved for {idle_s:.1f} s (the limit is "
            f"{self._timeout_s:g} s); it is at step {beat.step} {beat.doing!r}"
        )
        collective = collective_waited_for()
        line += f", in {collective}" if collective else ""
        if self._topology.world_size == 1:
            return line
        last_first = sorted(waits_for, key=lambda other: (other.step, other.turn, other.began_at))
        named = [self._name(other) for other in last_first[:_MOST_NAMED]]
        line += f" and waits for {'; '.join(named)}" if named else "; no rank is known to be behind it"
        if len(waits_for) > _MOST_NAMED:
            line += f"; and {len(waits_for) - _MOST_NAMED} more"
        known = {beat.rank, *(other.rank for other in self._others)}
        unknown = [str(rank) for rank in range(self._topology.world_size) if rank not in known]
        if unknown:
            more = ", ..." if len(unknown) > _MOST_NAMED else ""
            line += f"; nothing is known of rank {', '.join(unknown[:_MOST_NAMED])}{more}"
        peers = silent_peers()
        if peers:
            line += f"; nothing of what it sent to {', '.join(peers[:_MOST_NAMED])} was answered"
        return line

    def _name(self, other: Heartbeat) -> str:
        ago_s = time.time() - other.began_at
        seen = f"last seen at step {other.step} {other.doing!r} {ago_s:.1f} s ago"
        name = f"rank {self._with_host(other.rank)}, which was {seen}"
        if self._is_silent(other):
            name += f" and has given no sign of life for {other.silent_s:.1f} s"
        return name

    def _with_host(self, rank: int) -> str:
        hosts = self._topology.hosts
        return str(rank) if len(set(hosts)) == 1 else f"{rank} on {hosts[rank]}"

    def _report(self, line: str) -> None:
        with tempfile.TemporaryFile() as file:  # faulthandler holds the GIL while it writes, which must not be for long
            faulthandler.dump_traceback(file, all_threads=True)
            file.seek(0)
            text = f"{line}\n{file.read().decode()}"
        writers = [
            threading.Thread(target=write, args=(text,), daemon=True) for write in (self._to_stderr, self._to_folder)
        ]
        for writer in writers:
            writer.start()
        for writer in writers:
            writer.join(_REPORT_S / 2)

    def _to_stderr(self, text: str) -> None:
        mark = mark_of_rank()
        with open(_STDERR, "w", closefd=False) as stderr:  # not sys.stderr, whose lock the main thread may hold
            stderr.write("".join(mark + line for line in text.splitlines(keepends=True)))

    def _to_folder(self, text: str) -> None:
        self._folder.mkdir(parents=True, exist_ok=True)
        (self._folder / f"stalled-rank-{self._topology.rank}.txt").write_text(text)
