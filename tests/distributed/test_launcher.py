"""launch/torchrun.py ends as its ranks do and starts them again only where that helps; who is missing is told."""

import json
import re
import signal
import socket
import time
from contextlib import ExitStack

import pytest

from rankmixer_dist.errors import EXIT_PREEMPTED, EXIT_USER_ERROR

CASES = "tests/distributed/launcher_cases.py"


def command(end: str) -> list[str]:
    return ["launch/torchrun.py", "--nproc_per_node=2", "--max_restarts=1", CASES, end]


@pytest.mark.parametrize(
    ("end", "code", "starts"), [("killed", 0, 2), ("mistaken", EXIT_USER_ERROR, 1), ("well", 0, 1)]
)
def test_what_cannot_get_better_is_not_started_again(launch, end, code, starts):
    ended = launch.python(*command(end))
    assert ended.returncode == code, ended.stderr
    assert ended.stdout.count("met 2") == starts
    if end == "mistaken":
        assert ended.stderr == "error: this is a mistake\n"


def test_a_rank_that_computes_longer_than_the_other_is_found(launch):
    ended = launch.torchrun(CASES, "slow", ranks=2)
    assert ended.returncode == 0, ended.stderr
    told = [json.loads(line) for line in ended.stdout.splitlines() if line.startswith("{")]
    assert len(told) == 2 and told[0] == told[1]
    own, wait = told[0]["own_s"], told[0]["data_wait_s"]
    assert (own["rank"], own["host"]) == (1, socket.gethostname())
    assert own["max"] >= 0.2 > own["median"]
    assert (wait["median"], wait["max"], wait["rank"]) == (0.0, 0.25, 0)


@pytest.mark.parametrize(
    ("end", "number"), [("stopped", signal.SIGTERM), ("stopped", signal.SIGUSR1), ("unready", signal.SIGUSR1)]
)
def test_ranks_that_were_asked_to_stop_are_not_started_again(launch, tmp_path, end, number):
    log = tmp_path / "log"
    with launch.started(*command(end), log=log) as process:
        give_up = time.monotonic() + 100
        while log.read_text().count("loops") < 2 and time.monotonic() < give_up:
            time.sleep(0.02)
        process.send_signal(number)
        assert process.wait(100) == EXIT_PREEMPTED, log.read_text()
    assert log.read_text().count("stopped: asked to stop") == (end == "stopped")


def test_ranks_that_wait_for_a_dead_one_end_when_they_are_told_to_stop(launch, tmp_path):
    log = tmp_path / "log"
    with launch.started("launch/torchrun.py", "--shutdown_timeout=9", *command("deaf")[1:], log=log) as process:
        give_up = time.monotonic() + 100
        while log.read_text().count("loops") < 2 and time.monotonic() < give_up:
            time.sleep(0.02)
        process.send_signal(signal.SIGTERM)
        assert process.wait(100) == 128 + signal.SIGTERM, log.read_text()
    words = r"^stopped: rank (.) was told to stop by SIGTERM and has not come back from (\w+)"
    told = re.findall(words, log.read_text(), re.MULTILINE)
    assert sorted(told) == [("0", "all_reduce"), ("1", "main")]


def test_ranks_that_are_missing_are_named_and_a_port_that_is_taken_too(launch, tmp_path):
    with ExitStack() as jobs:
        probe = jobs.enter_context(socket.create_server(("127.0.0.1", 0)))
        address = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(probe.getsockname()[1]), "WORLD_SIZE": "3"}

        def start(rank: int):
            env = {**address, "RANK": str(rank), "LOCAL_RANK": "0"}
            return jobs.enter_context(launch.started(CASES, "well", log=tmp_path / f"rank-{rank}", **env))

        def told(rank: int, words: str, within_s: float = 100.0) -> None:
            give_up, found = time.monotonic() + within_s, ""
            while not re.search(words, found):
                assert time.monotonic() < give_up, f"rank {rank}: {found!r}"
                time.sleep(0.05)
                found = (tmp_path / f"rank-{rank}").read_text()

        assert start(0).wait(100) == EXIT_USER_ERROR
        told(0, "^error: port [0-9]+ cannot be listened on .*MASTER_PORT")
        probe.close()
        ranks = [start(2)]
        told(2, "rank 2 waits for rank 0 at 127.0.0.1:")
        ranks.append(start(0))
        told(0, "rank 0 waits for rank 1 of 3")
        ranks.append(start(1))
        assert [rank.wait(100) for rank in ranks] == [0, 0, 0]
