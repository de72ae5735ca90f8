"""Run on ranks: a loop in which the last rank hangs, is stopped, or is only slow."""

import ctypes
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import torch

from rankmixer_dist.command_line import run_verb
from rankmixer_dist.parallel.topology import process_group, sum_over_ranks
from rankmixer_dist.parallel.watchdog import Watchdog

STEPS, BAD_STEP = 6, 3


def sleeps_for_ever() -> None:
    """A loader that never delivers."""
    time.sleep(1e6)


def keeps_the_gil() -> None:
    """An extension that never comes back and lets no other thread run."""
    ctypes.PyDLL(None).sleep(10**6)


def is_stopped() -> None:
    """The whole process stands still. Only SIGKILL ends it, which torchrun would send 30 s after it has noticed."""
    subprocess.Popen(["sh", "-c", f"trap '' TERM; sleep 10; kill -KILL {os.getpid()}"])
    time.sleep(1.0)  # seen by the others
    os.kill(os.getpid(), signal.SIGSTOP)


def main(arguments: list[str]) -> None:
    """Takes a case, the timeout in seconds and the folder for the reports."""
    case, timeout_s, folder = arguments[0], float(arguments[1]), Path(arguments[2])
    with process_group() as topology, Watchdog(topology, timeout_s, folder) as watchdog:
        for step in range(STEPS):
            watchdog.beat(step, "waiting for data")
            if step == BAD_STEP and topology.rank == topology.world_size - 1:
                if case == "sleeps":
                    sleeps_for_ever()
                elif case == "keeps_gil":
                    keeps_the_gil()
                elif case == "stopped":
                    is_stopped()
            if case == "slow":
                time.sleep(timeout_s / 2)
            watchdog.beat(step, "step")
            sum_over_ranks(torch.ones(1))
    print(f"rank {topology.rank} is done", file=sys.stderr)


if __name__ == "__main__":
    run_verb(main)
