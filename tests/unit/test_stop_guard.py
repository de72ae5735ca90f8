"""A process that is told to stop while a library keeps its main thread ends by itself, and says where it was."""

import signal
import subprocess
import sys

import pytest

from rankmixer_dist.parallel.stop_guard import GRACE, deaf_limits

PROGRAM = """
import ctypes, os, signal, subprocess, sys, threading, time
from rankmixer_dist.parallel.stop_guard import StopGuard
case, number = sys.argv[1], int(sys.argv[2])
limit_s = 2.0 if case == "frozen" else 0.5
guard = StopGuard(3, {number: limit_s}, lambda: "all_reduce over all ranks" if case == "exchange" else None)
signal.signal(number, lambda *_: guard.heard())
guard.start()
lock = ctypes.create_string_buffer(64)  # a mutex in its first state
library = ctypes.CDLL(None)
library.pthread_mutex_lock(lock)
threading.Timer(0.2, os.kill, (os.getpid(), number)).start()
if case in ("library", "exchange"):
    library.pthread_mutex_lock(lock)  # never comes back, whatever signal comes
if case == "later":  # hears the signal, and is deaf after it
    time.sleep(0.4)
    library.pthread_mutex_lock(lock)
if case == "frozen":  # deaf for 0.2 s, which a busy machine draws out, and stopped for 3 s amid them
    def unlock():
        for _ in range(20):  # 0.2 s until the signal comes, and 0.2 s after it
            time.sleep(0.02)
        library.pthread_mutex_unlock(lock)
    threading.Thread(target=unlock).start()
    subprocess.Popen(["sh", "-c", "sleep 0.25; kill -STOP $PPID; sleep 3; kill -CONT $PPID"])
    library.pthread_mutex_lock(lock)
until = time.monotonic() + 1.5
while time.monotonic() < until:  # slow, but here: each wait is shorter than the limit
    time.sleep(0.01) if case == "works" else threading.Event().wait(5.0 if case == "waits" else 0.3)
guard.end()
os.kill(os.getpid(), number)
print("ended well")
"""


def run(case: str, number: int = signal.SIGTERM) -> subprocess.CompletedProcess[str]:
    program = [sys.executable, "-c", PROGRAM, case, str(int(number))]
    return subprocess.run(program, capture_output=True, text=True, timeout=60, check=False)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGUSR1])
@pytest.mark.parametrize(
    ("case", "place"),
    [("library", "<module> (<string>:14)"), ("exchange", "all_reduce over all ranks"), ("later", "<module> (")],
)
def test_a_main_thread_that_never_comes_back_ends_with_its_process(case: str, place: str, number: int) -> None:
    ended = run(case, number)
    assert (ended.returncode, ended.stdout) == (128 + number, ""), ended.stderr
    name = signal.Signals(number).name
    (line,) = ended.stderr.splitlines()
    assert line.startswith(f"stopped: rank 3 was told to stop by {name} and has not come back from {place}")
    assert line.endswith("nothing is saved; start it again to go on from the newest checkpoint")


@pytest.mark.parametrize("case", ["works", "waits", "slow", "frozen"])
def test_a_main_thread_that_is_only_busy_waits_in_python_or_was_frozen_is_left_alone(case: str) -> None:
    ended = run(case)
    assert (ended.returncode, ended.stdout, ended.stderr) == (0, "ended well\n", "")


def test_the_limit_leaves_most_of_the_time_that_the_launcher_leaves() -> None:
    assert deaf_limits({}) == {signal.SIGTERM: 20.0}  # nobody kills after SIGUSR1 alone
    assert deaf_limits({GRACE: "30"}) == {signal.SIGTERM: 20.0, signal.SIGUSR1: 20.0}
    assert deaf_limits({GRACE: "240"})[signal.SIGUSR1] == 60.0
    assert deaf_limits({GRACE: "6"})[signal.SIGTERM] == 4.0
    assert deaf_limits({GRACE: "0"})[signal.SIGTERM] == 1.0
    assert deaf_limits({GRACE: "soon"}) == deaf_limits({})
