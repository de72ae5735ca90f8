"""Run by a launcher: ranks that meet and end as their arguments say."""

import os
import signal
import time

import torch

from rankmixer_dist.command_line import run_verb
from rankmixer_dist.errors import Preempted, UserError
from rankmixer_dist.parallel.preemption import StopRequest
from rankmixer_dist.parallel.topology import process_group, sum_over_ranks


def main(arguments: list[str]) -> None:
    """Takes how to end: `well`, `mistaken`, `killed` (rank 1, at its first start only) or `stopped` (by a signal)."""
    (end,) = arguments
    with process_group() as topology:
        total = int(sum_over_ranks(torch.ones(1)))
        if topology.is_first:
            print(f"met {total}", flush=True)
        if end == "mistaken":
            raise UserError("this is a mistake")
        if end == "killed" and topology.rank == 1 and os.environ["TORCHELASTIC_RESTART_COUNT"] == "0":
            os.kill(os.getpid(), signal.SIGKILL)
        if end == "stopped":
            with StopRequest(topology) as request:
                print("loops", flush=True)
                while not request.agreed():
                    time.sleep(0.01)
            raise Preempted("asked to stop")


if __name__ == "__main__":
    run_verb(main)
