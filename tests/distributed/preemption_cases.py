"""Run on ranks: loops in which one rank, or each of them, gets a signal at a random moment."""

import json
import os
import random
import signal
import threading
import time

import torch

from rankmixer_dist.command_line import run_verb
from rankmixer_dist.errors import Preempted
from rankmixer_dist.parallel.preemption import StopRequest
from rankmixer_dist.parallel.topology import Topology, gather_objects, process_group, sum_over_ranks


def steps_until_stopped(topology: Topology, receivers: set[int], number: signal.Signals, seed: int) -> int:
    """Steps that this rank takes before it is told to stop."""
    random_ = random.Random(1000 * seed + topology.rank)
    timer = threading.Timer(random_.uniform(0.0, 0.3), os.kill, (os.getpid(), number))
    with StopRequest(topology) as stop:
        if topology.rank in receivers:
            timer.start()
        step = 0
        while not stop.agreed():
            time.sleep(random_.choice((0.0, 0.0, 0.001, 0.004)))
            sum_over_ranks(torch.ones(1))  # hangs if the ranks part
            step += 1
        assert stop.agreed(), "an answer does not change"
    timer.cancel()
    return step


def fail_on_one_rank(topology: Topology) -> None:
    """The last rank fails with an exchange under way, to which the others do not come: they wait to be ended."""
    with StopRequest(topology) as stop:
        if topology.rank < topology.world_size - 1:
            signal.signal(signal.SIGTERM, signal.SIG_DFL)
            time.sleep(40)
        stop.agreed()
        if topology.rank == topology.world_size - 1:
            raise RuntimeError("this rank fails")


def main(arguments: list[str]) -> None:
    """Prints a JSON line a trial: who got which signal, and the steps that each rank took."""
    with process_group() as topology:
        if arguments == ["fails"]:
            fail_on_one_rank(topology)
            return
        everyone = set(range(topology.world_size))
        for seed, receivers in enumerate([*({rank} for rank in everyone), everyone] * 4):
            number = (signal.SIGTERM, signal.SIGUSR1)[seed % 2]
            steps = gather_objects(steps_until_stopped(topology, receivers, number, seed))
            if topology.is_first:
                print(json.dumps({"receivers": sorted(receivers), "signal": number.name, "steps": steps}), flush=True)
        for _ in range(3):  # left with an exchange under way
            with StopRequest(topology) as stop:
                stop.agreed()
        os.kill(os.getpid(), signal.SIGTERM)  # comes late, and finds a run on its way out
        raise Preempted("saved at step 7;\nstart it again to go on")


if __name__ == "__main__":
    run_verb(main)
