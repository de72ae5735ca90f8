"""launch/torchrun.py ends as its ranks do and starts them again only where that helps; who is missing is told."""

import json
import re
import signal
import socket
import subprocess
import time
from contextlib import ExitStack
from pathlib import Path

import psutil
import pytest

from rankmixer_dist.errors import EXIT_PREEMPTED, EXIT_USER_ERROR

CASES = "tests/distributed/launcher_cases.py"
THOROUGH = pytest.mark.thorough
"""Of variants: each costs three starts of Python, and one of its kind is in the ordinary suite."""
NOHUP = """
import os, signal, sys
signal.signal(signal.SIGHUP, signal.SIG_IGN)
os.execv(sys.executable, [sys.executable, *sys.argv[1:]])
"""


def command(end: str) -> list[str]:
    return ["launch/torchrun.py", "--nproc_per_node=2", "--max_restarts=1", CASES, end]


def wait_for(log: Path, words: str, times: int = 1) -> None:
    """Waits until a job has said something so often."""
    give_up = time.monotonic() + 100
    while log.read_text().count(words) < times:
        assert time.monotonic() < give_up, log.read_text()
        time.sleep(0.02)


@pytest.mark.parametrize(
    ("end", "code", "starts"),
    [
        ("killed", 0, 2),
        ("alone0", EXIT_USER_ERROR, 1),
        pytest.param("alone1", EXIT_USER_ERROR, 1, marks=THOROUGH),
        pytest.param("mistaken", EXIT_USER_ERROR, 1, marks=THOROUGH),
        pytest.param("well", 0, 1, marks=THOROUGH),
    ],
)
def test_what_cannot_get_better_is_not_started_again(launch, end, code, starts):
    ended = launch.python(*command(end))
    assert ended.returncode == code, ended.stderr
    assert ended.stdout.count("met 2") == starts
    if code == EXIT_USER_ERROR:  # of a rank that waits for another one, which has ended, nothing is heard
        assert ended.stderr == "error: this is a mistake\n"


def test_a_rank_that_computes_longer_than_the_other_is_found(launch):
    ended = launch.forked(CASES, "slow", ranks=2)
    assert ended.returncode == 0, ended.stderr
    told = [json.loads(line) for line in ended.stdout.splitlines() if line.startswith("{")]
    assert len(told) == 2 and told[0] == told[1]
    own, wait = told[0]["own_s"], told[0]["data_wait_s"]
    assert (own["rank"], own["host"]) == (1, socket.gethostname())
    assert own["max"] >= 0.2 > own["median"]
    assert (wait["median"], wait["max"], wait["rank"]) == (0.0, 0.25, 0)


@pytest.mark.parametrize(
    ("end", "number", "code"),
    [
        pytest.param("stopped", signal.SIGTERM, EXIT_PREEMPTED, marks=THOROUGH),
        ("stopped", signal.SIGUSR1, EXIT_PREEMPTED),
        ("unready", signal.SIGUSR1, EXIT_PREEMPTED),
        pytest.param("last", signal.SIGTERM, 0, marks=THOROUGH),
        pytest.param("full", signal.SIGTERM, EXIT_USER_ERROR, marks=THOROUGH),
        ("gone", signal.SIGTERM, 128 + signal.SIGTERM),
    ],
)
def test_ranks_that_were_asked_to_stop_are_not_started_again(launch, tmp_path, end, number, code):
    log = tmp_path / "log"
    with launch.started(*command(end), log=log) as process:
        wait_for(log, "loops", times=2)
        process.send_signal(number)
        assert process.wait(100) == code, log.read_text()
    assert log.read_text().count("stopped: asked to stop") == (end == "stopped")
    otherwise = "75: local rank 0 with 1, local rank 1 with -9; a new start goes on from the newest checkpoint"
    assert (otherwise in log.read_text()) == (end == "gone")


def test_a_launcher_that_is_told_again_and_again_lets_its_ranks_save(launch, tmp_path):
    log = tmp_path / "log"
    with launch.started(*command("stopped"), log=log) as process:
        wait_for(log, "loops", times=2)
        for number in (signal.SIGTERM, signal.SIGTERM, signal.SIGUSR1, signal.SIGHUP, signal.SIGTERM):
            process.send_signal(number)
            time.sleep(0.15)
        assert process.wait(100) == EXIT_PREEMPTED, log.read_text()
    assert log.read_text().count("stopped: asked to stop") == 1


def test_a_launcher_under_nohup_goes_on_when_its_terminal_closes(launch, tmp_path):
    log = tmp_path / "log"
    with launch.started("-c", NOHUP, *command("stopped"), log=log) as process:
        wait_for(log, "loops", times=2)
        process.send_signal(signal.SIGHUP)
        with pytest.raises(subprocess.TimeoutExpired):
            process.wait(1.5)
        process.send_signal(signal.SIGTERM)
        assert process.wait(100) == EXIT_PREEMPTED, log.read_text()


def test_ranks_that_had_too_little_time_to_save_are_named(launch, tmp_path):
    log = tmp_path / "log"
    with launch.started("launch/torchrun.py", "--shutdown_timeout=1", *command("large")[1:], log=log) as process:
        wait_for(log, "loops", times=2)
        process.send_signal(signal.SIGTERM)
        assert process.wait(100) == 128 + signal.SIGTERM, log.read_text()
    assert "error: 1 s after SIGTERM these had not ended, and were killed: local ranks 0, 1;" in log.read_text()


def test_the_ranks_beside_one_that_failed_have_the_time_that_they_were_told(launch, tmp_path):
    options = ["launch/torchrun.py", "--nproc_per_node=2", "--shutdown_timeout=5", CASES, "stays"]
    with launch.started(*options, log=tmp_path / "log") as process:
        wait_for(tmp_path / "log", "this rank fails")
        began = time.monotonic()
        assert process.wait(100) == 1
    assert 2.0 < time.monotonic() - began < 20.0, "torchrun's own time is 30 s"


def runs(process: psutil.Process) -> bool:
    """Whether it has not ended. An orphan that has stays a zombie where the first process asks nobody how it ended."""
    try:
        return process.is_running() and process.status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


def still_there(processes: list[psutil.Process], *, timeout_s: float) -> list[psutil.Process]:
    """Those of them that have not ended by then."""
    give_up = time.monotonic() + timeout_s
    while True:
        alive = [each for each in processes if runs(each)]
        if not alive or time.monotonic() > give_up:
            return alive
        time.sleep(0.1)


@pytest.mark.parametrize(
    ("number", "trains"), [(signal.SIGTERM, True), pytest.param(signal.SIGKILL, False, marks=THOROUGH)]
)
def test_the_end_of_the_deepspeed_command_stops_its_ranks(launch, tmp_path, number, trains):
    log = tmp_path / "log"
    runner = ["-m", "deepspeed.launcher.runner", "--num_gpus=2", "--master_addr=127.0.0.1", "--no_local_rank"]
    with launch.started(*runner, CASES, "stopped", log=log) as process:
        family = psutil.Process(process.pid).children(recursive=True)
        while len(family) < 3 if trains else not family:
            time.sleep(0.05)
            family = psutil.Process(process.pid).children(recursive=True)
        if trains:
            wait_for(log, "loops", times=2)
        process.send_signal(number)
        process.wait(100)
        alive = still_there(family, timeout_s=100)
        for one in alive:
            one.kill()
    assert not alive, log.read_text()
    assert log.read_text().count("stopped: asked to stop") == trains


def test_ranks_that_wait_for_a_dead_one_end_when_they_are_told_to_stop(launch, tmp_path):
    log = tmp_path / "log"
    with launch.started("launch/torchrun.py", "--shutdown_timeout=9", *command("deaf")[1:], log=log) as process:
        wait_for(log, "loops", times=2)
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
