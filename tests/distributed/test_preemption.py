"""A signal that reaches some rank stops all ranks at the same step."""

import json
import os
import signal

import pytest
import torch

from rankmixer_dist.errors import EXIT_PREEMPTED
from rankmixer_dist.parallel.preemption import StopRequest
from rankmixer_dist.parallel.topology import Topology


@pytest.mark.parametrize("ranks", [1, 2])
def test_all_ranks_stop_at_the_same_step(launch, ranks):
    ended = launch.forked("tests/distributed/preemption_cases.py", ranks=ranks)
    trials = [json.loads(line) for line in ended.stdout.splitlines() if line.startswith("{")]
    assert len(trials) == 4 * (ranks + 1), ended.stderr[-3000:]
    for trial in trials:
        assert len(trial["steps"]) == ranks
        assert len(set(trial["steps"])) == 1, trial
    assert len({trial["steps"][0] for trial in trials}) > 1, "the moments were to differ"
    assert ended.returncode == EXIT_PREEMPTED
    assert ended.stderr.count("stopped: saved at step 7; start it again to go on") == 1


def test_a_rank_that_fails_ends_at_once(launch):
    ended = launch.torchrun("tests/distributed/preemption_cases.py", "fails", ranks=2)
    assert "RuntimeError: this rank fails" in ended.stderr
    assert "Signal 15 (SIGTERM) received" in ended.stderr, "the launcher was to end the other rank"


ALONE = Topology(0, 1, 0, 1, torch.device("cpu"))


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGUSR1])
def test_one_process_without_a_group(number):
    before = signal.getsignal(number)
    try:
        with StopRequest(ALONE) as stop:
            assert not stop.agreed()
            os.kill(os.getpid(), number)
            assert stop.agreed()
        os.kill(os.getpid(), number)  # would end this process, had its handler been put back
    finally:
        signal.signal(number, before)


def test_a_run_that_nobody_stops_gets_its_handlers_back():
    former = [signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGUSR1)]
    with StopRequest(ALONE) as stop:
        assert not stop.agreed()
        assert signal.getsignal(signal.SIGTERM) != former[0]
    assert [signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGUSR1)] == former
