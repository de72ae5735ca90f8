"""Run by a launcher: ranks that meet and end as their arguments say."""

import ctypes
import json
import os
import signal
import time

import torch

from rankmixer_dist.command_line import run_verb
from rankmixer_dist.errors import Preempted, RankError, UserError
from rankmixer_dist.parallel.comm_time import CommTimer
from rankmixer_dist.parallel.preemption import StopRequest
from rankmixer_dist.parallel.stop_guard import GRACE
from rankmixer_dist.parallel.topology import process_group, sum_over_ranks
from rankmixer_dist.train.rank_figures import rank_figures


def main(arguments: list[str]) -> None:
    """Takes how to end: `well`; `mistaken`; `killed` (rank 1, at its first start only); `stopped` (by a signal, after 1
    s as for saving); `large` (the same after 300 s); `last` (well, though a signal came); `full` (by a mistake of rank
    0, which a signal stopped; rank 1 waits for it); `gone` (rank 1 is killed after the signal, and rank 0 waits for
    it); `unready` (by a signal that it does not await); `deaf` (in an exchange to which rank 1, which is as good as
    dead, never comes); `stays` (rank 0, when rank 1 has failed); `slow`: rank 1 computes for 0.2 s between a step's
    collectives; or by a mistake of one rank, for which the other one waits (`alone0`), or will wait once the launcher
    has told it to stop (`alone1`).
    """
    (end,) = arguments
    with process_group() as topology:
        total = int(sum_over_ranks(torch.ones(1)))
        if topology.is_first:
            print(f"met {total}", flush=True)
        if end == "slow":
            with CommTimer(topology.device) as timer:
                for _ in range(4):
                    time.sleep(0.05 * topology.rank)
                    sum_over_ranks(torch.ones(1))
            line = {"own_s": timer.own_s, "data_wait_s": 0.25 - 0.25 * topology.rank, "mem_gb": None}
            print(json.dumps(rank_figures(line, topology)), flush=True)
        if end == "mistaken":
            raise UserError("this is a mistake")
        if end.startswith("alone"):
            with StopRequest(topology):
                if end == f"alone{topology.rank}":
                    raise RankError("this is a mistake")
                time.sleep(2 if end == "alone1" else 0)
                sum_over_ranks(torch.ones(1))
        if end == "killed" and topology.rank == 1 and os.environ["TORCHELASTIC_RESTART_COUNT"] == "0":
            os.kill(os.getpid(), signal.SIGKILL)
        if end == "stays":
            if topology.rank == 1:
                raise RuntimeError("this rank fails")
            signal.signal(signal.SIGTERM, signal.SIG_IGN)
            time.sleep(300)
        if end == "unready":
            print("loops", flush=True)
            time.sleep(300)
        if end == "deaf":
            if topology.rank == 0:
                os.environ[GRACE] = "6"  # before rank 1 ends too, and its connections with it
            with StopRequest(topology):
                print("loops", flush=True)
                if topology.rank == 1:
                    mutex, library = ctypes.create_string_buffer(64), ctypes.CDLL(None)
                    while True:
                        library.pthread_mutex_lock(mutex)  # the second time for ever
                sum_over_ranks(torch.ones(1))
        if end in ("stopped", "large", "last", "full", "gone"):
            with StopRequest(topology) as request:
                print("loops", flush=True)
                while not request.agreed():
                    time.sleep(0.01)
                if end == "full" and topology.rank == 0:
                    raise RankError("this is a mistake")
                if end == "gone" and topology.rank == 1:
                    os.kill(os.getpid(), signal.SIGKILL)
                if end in ("full", "gone"):
                    sum_over_ranks(torch.ones(1))
                time.sleep(300.0 if end == "large" else 1.0)
            if end == "last":
                return
            raise Preempted("asked to stop")


if __name__ == "__main__":
    run_verb(main)
