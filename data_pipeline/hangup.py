"""A run that is asked to end leaves nothing behind: the signals of a batch system or a closed terminal unwind it."""

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

_SIGNALS = (signal.SIGTERM, signal.SIGHUP)


@contextmanager
def signals_unwind() -> Iterator[None]:
    """For the length of the block, SIGTERM and SIGHUP raise SystemExit: 128 and their number, as shells have it.

    Each would end the process on the spot otherwise; one that is ignored (nohup) stays so. The first one counts, so
    that tidying up goes on to its end. A thread other than the main one gets no signals, and nothing is changed there.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    asked: list[int] = []
    before = {number: signal.getsignal(number) for number in _SIGNALS}

    def leave(number: int, frame: FrameType | None) -> None:
        for own in _SIGNALS:
            signal.signal(own, signal.SIG_IGN)
        asked.append(number)
        raise SystemExit(128 + number)

    for number, handler in before.items():
        if handler is not signal.SIG_IGN:
            signal.signal(number, leave)
    try:
        yield
        if asked:  # the exit came inside a destructor or a callback of C code, which swallow what is raised
            raise SystemExit(128 + asked[0])
    except BaseException:
        if asked:  # Ray puts an exit of its own, without the number, in the place of one that comes while it waits
            raise SystemExit(128 + asked[0]) from None
        raise
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
