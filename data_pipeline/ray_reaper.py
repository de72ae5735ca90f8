"""Ends the Ray of a process that was killed: some of Ray's processes would outlive it by minutes.

Started by `ray_cluster.py` as a script beside Ray: `ray_reaper.py FOLDER...`, with the read end of a pipe for its
input. The pipe's end is the end of the process that holds the other one. Each line in it is a process of Ray, as its
number and start time. Imports nothing but the standard library, so that it costs little to have.
"""

import os
import shutil
import signal
import sys
import time
from contextlib import suppress
from pathlib import Path

_WORKERS_END_S = 30.0


def start_time(pid: int) -> str | None:
    """When a process was started, in ticks since the machine was; None where there is none."""
    try:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return None
    return None if fields[0] == "Z" else fields[19]


def main() -> None:
    """Waits for the end of the pipe, ends what still runs and removes Ray's folders."""
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, signal.SIG_IGN)
    folders = [Path(name) for name in sys.argv[1:]]
    processes = [line.split() for line in sys.stdin]
    give_up = time.monotonic() + _WORKERS_END_S
    while any(folder.exists() for folder in folders):
        running = [int(pid) for pid, started in processes if start_time(int(pid)) == started]
        for pid in running:
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        for folder in folders:
            shutil.rmtree(folder, ignore_errors=True)
        if time.monotonic() > give_up:
            break
        time.sleep(0.1)


if __name__ == "__main__":
    main()
