"""Ends a process that was told to stop and cannot hear it, because its main thread never comes back from a library."""

import os
import signal
import sys
import threading
from collections.abc import Callable, Mapping
from contextlib import suppress

from rankmixer_dist.command_line import mark_of_rank

GRACE = "TORCH_ELASTIC_SHUTDOWN_TIMEOUT"
"""Environment variable of torchrun: seconds between SIGTERM and SIGKILL. launch/torchrun.py sets it for its ranks."""
_USUAL_GRACE_S = 30.0
"""Of torchrun, the deepspeed launcher, SLURM and Kubernetes, where nobody has said otherwise."""
_PATIENCE_S = 20.0
_STDERR = 2


def deaf_limits(env: Mapping[str, str]) -> dict[int, float]:
    """Seconds after each stop signal for which the main thread may not come back to Python.

    An exchange may wait for a rank that is only slow, and the run still be saved. So the limit grows with the time that
    the launcher leaves, and leaves most of it. SIGUSR1 alone is no threat: nobody kills after it, but a launcher that
    has passed it on and set a time.
    """
    told = env.get(GRACE, "")
    grace_s = float(told) if told.isdecimal() else _USUAL_GRACE_S
    limit_s = max(1.0, grace_s / 4, min(_PATIENCE_S, grace_s * 2 / 3))
    guarded = (signal.SIGTERM, signal.SIGUSR1) if told.isdecimal() else (signal.SIGTERM,)
    return {int(number): limit_s for number in guarded}


class StopGuard:
    """Guards the main thread, which starts and ends it, against being deaf once a signal of `limits_s` has come.

    Python runs the handler of a signal in the main thread, between two operations of its own. A thread that waits in
    NCCL for a rank that has died does not come to that. So a thread of the guard's learns of the signal from the file
    that Python's C code writes to at once, sends it to the main thread again and again, and ends the process when none
    has been `heard` for the limit: with the exit code of a process that this signal has ended, since nothing was saved.
    """

    def __init__(self, rank: int, limits_s: Mapping[int, float], waits_for: Callable[[], str | None]) -> None:
        self._rank, self._limits_s, self._waits_for = rank, limits_s, waits_for
        self._heard = 0
        self._over = threading.Event()
        self._thread: threading.Thread | None = None

    def start(self) -> None:
        """Begins to listen."""
        self._reading, self._writing = os.pipe()
        os.set_blocking(self._writing, False)
        self._former = signal.set_wakeup_fd(self._writing, warn_on_full_buffer=False)
        self._thread = threading.Thread(target=self._listen, name="stop guard", daemon=True)
        self._thread.start()

    def heard(self) -> None:
        """The handler of a signal runs."""
        self._heard += 1

    def end(self) -> None:
        """Listens no more: the main thread is on its way out, or nobody has told it to stop."""
        if self._thread is None:
            return
        self._over.set()
        signal.set_wakeup_fd(self._former)
        os.close(self._writing)  # which ends the reading
        self._thread.join()
        self._thread = None

    def _listen(self) -> None:
        while number := os.read(self._reading, 1):
            if number[0] in self._limits_s:
                self._insist(number[0], self._limits_s[number[0]])
        os.close(self._reading)

    def _insist(self, number: int, limit_s: float) -> None:
        main, heard, unheard = threading.main_thread(), -1, 0
        pause_s = min(1.0, limit_s / 10)
        while not self._over.wait(pause_s):
            # Signals are counted, and not the time: a process that was stopped meanwhile, or its host, was not deaf.
            unheard = unheard + 1 if self._heard == heard else 0
            heard = self._heard
            if unheard * pause_s >= limit_s:
                self._say(number, limit_s)
                os._exit(128 + number)
            assert main.ident is not None
            signal.pthread_kill(main.ident, number)

    def _say(self, number: int, limit_s: float) -> None:
        line = (
            f"stopped: rank {self._rank} was told to stop by {signal.Signals(number).name} and has not come back from "
            f"{self._waits_for() or self._place()} for {limit_s:g} s, as where another rank is gone; it ends, and "
            "nothing is saved; start it again to go on from the newest checkpoint"
        )
        with suppress(OSError), open(_STDERR, "w", closefd=False) as stderr:  # the main thread may hold sys.stderr
            stderr.write(f"{mark_of_rank()}{line}\n")

    def _place(self) -> str:
        """Where the main thread is."""
        ident = threading.main_thread().ident
        frame = None if ident is None else sys._current_frames().get(ident)
        return "a library" if frame is None else f"{frame.f_code.co_name} ({frame.f_code.co_filename}:{frame.f_lineno})"
