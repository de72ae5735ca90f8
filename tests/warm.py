"""A process that has loaded what ranks load, and forks them: a rank's start costs milliseconds, not 6 CPU seconds.

`Launch.ranks` starts it as `python tests/warm.py` and hands it one job a line. It has no threads, which a fork would
lose. Nothing that a script registered for its exit runs. What a launcher does beside starting ranks is for the tests of
launchers.
"""

import ctypes
import gc
import importlib
import json
import os
import runpy
import signal
import socket
import subprocess
import sys
import threading
import time
import traceback
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, NoReturn

MODULES = (
    "data_pipeline.reading",
    "rankmixer_dist.parallel.watchdog",
    "rankmixer_dist.train.evaluate",
    "rankmixer_dist.train.run",
    "rankmixer_dist.verbs.train",
)
GRACE_S = 20.0
"""Between a rank's failure and the end of the others, which tell what they saw of it."""
MOST_S = 280.0
_PR_SET_PDEATHSIG = 1


class Warm:
    """The other end: jobs for a process of this file, one at a time.

    Args:
        env: of the process and of what it forks.
    """

    def __init__(self, env: Mapping[str, str]) -> None:
        self._folder = TemporaryDirectory(prefix="warm-")
        self._process = subprocess.Popen(
            [sys.executable, __file__], env=env, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
            start_new_session=True,
        )  # fmt: skip

    def run(self, script: str, arguments: Sequence[str], ranks: int | None) -> subprocess.CompletedProcess[str]:
        """The end of a script that all ranks run, or one process that is no rank; what they said is in one text.

        Ranks that run for longer than `MOST_S` are killed.
        """
        out, err = (Path(self._folder.name) / name for name in ("out", "err"))
        out.write_text("")
        err.write_text("")
        job = {"script": script, "arguments": arguments, "ranks": ranks, "out": str(out), "err": str(err)}
        assert self._process.stdin is not None and self._process.stdout is not None
        with suppress(BrokenPipeError):
            print(json.dumps(job), file=self._process.stdin, flush=True)
        reply = self._process.stdout.readline()
        assert reply, "the process that forks ranks has died; its standard error says why"
        codes = json.loads(reply)
        code = next((code for code in codes if code), 0)
        return subprocess.CompletedProcess([script, *arguments], code, out.read_text(), err.read_text())

    def close(self) -> None:
        """Ends the process and all that it has forked."""
        os.killpg(self._process.pid, signal.SIGKILL)
        self._process.wait()
        self._folder.cleanup()


def main() -> None:
    """Loads the modules, and answers every line of stdin by one of stdout."""
    gc.disable()
    for module in MODULES:
        importlib.import_module(module)
    gc.freeze()
    gc.enable()
    assert threading.active_count() == 1, threading.enumerate()
    replies = os.fdopen(os.dup(1), "w")
    for line in sys.stdin:
        job = json.loads(line)
        print(json.dumps(_ended([_forked(job, env) for env in _places(job["ranks"])])), file=replies, flush=True)


def _places(ranks: int | None) -> list[dict[str, str]]:
    """What torchrun would say to each rank; a script without ranks hears nothing."""
    if ranks is None:
        return [{}]
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    shared = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port, "WORLD_SIZE": ranks, "LOCAL_WORLD_SIZE": ranks}
    return [
        {name: str(value) for name, value in (shared | {"RANK": rank, "LOCAL_RANK": rank}).items()}
        for rank in range(ranks)
    ]


def _forked(job: dict[str, Any], env: dict[str, str]) -> int:
    pid = os.fork()
    if pid == 0:
        _become(job, env)
    return pid


def _become(job: dict[str, Any], env: dict[str, str]) -> NoReturn:
    """The forked process runs the script as Python would."""
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    for descriptor, name in ((1, "out"), (2, "err")):
        file = os.open(job[name], os.O_WRONLY | os.O_CREAT | os.O_APPEND)
        os.dup2(file, descriptor)
        os.close(file)
    nothing = os.open(os.devnull, os.O_RDONLY)  # the jobs that come after this one are not the script's
    os.dup2(nothing, 0)
    os.close(nothing)
    os.environ |= env
    sys.argv = [job["script"], *job["arguments"]]
    sys.path[0] = str(Path(job["script"]).parent)
    code = 0
    try:
        runpy.run_path(job["script"], run_name="__main__")
    except SystemExit as end:
        code = end.code if isinstance(end.code, int) else int(end.code is not None)
        if end.code is not None and end.code is not code:
            print(end.code, file=sys.stderr)
    except BaseException:
        traceback.print_exc()
        code = 1
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)


def _ended(pids: list[int]) -> list[int]:
    """The exit code of each; once one has failed, the others have a moment."""
    codes: dict[int, int] = {}
    deadline = time.monotonic() + MOST_S
    while len(codes) < len(pids):
        for pid in pids:
            if pid in codes:
                continue
            done, status = os.waitpid(pid, os.WNOHANG)
            if done:
                codes[pid] = os.waitstatus_to_exitcode(status)
            elif time.monotonic() > deadline:
                os.kill(pid, signal.SIGKILL)
        if any(codes.values()):
            deadline = min(deadline, time.monotonic() + GRACE_S)
        time.sleep(0.01)
    return [codes[pid] for pid in pids]


if __name__ == "__main__":
    main()
