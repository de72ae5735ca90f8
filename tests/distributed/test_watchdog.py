"""A run in which nothing moves ends by itself, names the rank that hangs and shows its stack."""

import re
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest
import torch

from rankmixer_dist.errors import EXIT_STALLED
from rankmixer_dist.parallel.heartbeat import Heartbeat, HeartbeatFiles
from rankmixer_dist.parallel.topology import Topology
from rankmixer_dist.parallel.watchdog import Watchdog, exchange_limit_s

TIMEOUT_S = 4.0
CASES = "tests/distributed/watchdog_cases.py"


def report(folder: Path, rank: int) -> list[str]:
    return (folder / f"stalled-rank-{rank}.txt").read_text().splitlines()


def test_a_rank_that_hangs_is_named_with_its_stack(launch, tmp_path):
    ended = launch.torchrun(CASES, "sleeps", str(TIMEOUT_S), str(tmp_path), ranks=2)
    assert ended.returncode != 0
    assert f"exitcode  : {EXIT_STALLED}" in ended.stderr
    line, *stacks = report(tmp_path, 1)
    assert re.fullmatch(
        r"watchdog: rank 1 has not moved for 4\.\d s \(the limit is 4 s\); it is at step 3 'waiting for data'; "
        "no rank is known to be behind it",
        line,
    )
    assert any("in sleeps_for_ever" in frame for frame in stacks)
    line, *stacks = report(tmp_path, 0)
    assert re.fullmatch(
        r"watchdog: rank 0 has not moved for \d\.\d s \(the limit is 4 s\); it is at step 3 'step', "
        r"in all_reduce over all ranks and waits for rank 1, "
        r"which was last seen at step 3 'waiting for data' \d\.\d s ago",
        line,
    )
    assert any("in sum_over_ranks" in frame for frame in stacks)
    for rank in (0, 1):
        assert report(tmp_path, rank)[0] in ended.stderr
    assert ended.stderr.index("in sleeps_for_ever") < ended.stderr.index("watchdog: rank 0")


def test_a_rank_that_is_stopped_is_named_by_the_other(launch, tmp_path):
    ended = launch.torchrun(CASES, "stopped", str(TIMEOUT_S), str(tmp_path), ranks=2)
    assert ended.returncode != 0
    assert f"exitcode  : {EXIT_STALLED}" in ended.stderr
    line, *stacks = report(tmp_path, 0)
    assert re.fullmatch(
        r"watchdog: rank 0 has not moved for \d\.\d s \(the limit is 4 s\); it is at step 3 'step', "
        r"in all_reduce over all ranks and waits for rank 1, "
        r"which was last seen at step 3 'waiting for data' \d\.\d s ago and has given no sign of life for "
        r"\d\.\d s",
        line,
    )
    assert any("in sum_over_ranks" in frame for frame in stacks)
    assert not (tmp_path / "stalled-rank-1.txt").exists()


def test_a_rank_that_keeps_the_gil_shows_its_stack(launch, tmp_path):
    ended = launch.forked(CASES, "keeps_gil", str(TIMEOUT_S), str(tmp_path), ranks=2)
    assert ended.returncode != 0
    assert "in keeps_the_gil" in ended.stderr


def test_a_slow_run_is_left_alone(launch, tmp_path):
    start = time.monotonic()
    ended = launch.forked(CASES, "slow", "2", str(tmp_path), ranks=2)
    assert ended.returncode == 0, ended.stderr[-3000:]
    assert time.monotonic() - start > 6, "it was to be slower in all than the timeout"
    assert "watchdog" not in ended.stderr
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(("case", "frame"), [("sleeps", "in sleeps_for_ever"), ("keeps_gil", "in keeps_the_gil")])
def test_one_process_without_a_launcher(launch, tmp_path, case, frame):
    ended = launch.forked(CASES, case, "1", str(tmp_path))
    assert ended.returncode == (EXIT_STALLED if case == "sleeps" else 1)
    assert frame in ended.stderr
    if case == "sleeps":
        assert re.match(
            r"watchdog: rank 0 has not moved for 1\.\d s .* step 3 'waiting for data'$", report(tmp_path, 0)[0]
        )


def test_without_a_timeout_nothing_is_watched(tmp_path):
    threads = threading.active_count()
    with Watchdog(Topology(0, 2, 0, 2, torch.device("cpu")), None, tmp_path) as watchdog:
        watchdog.beat(1, "step")
        assert threading.active_count() == threads
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("timeout_s", [1.0, 10.0, 60.0, 600.0, 7200.0])
def test_an_exchange_may_last_until_the_watchdogs_of_all_ranks_have_spoken(timeout_s):
    head_start_s, report_s = min(timeout_s / 4, 15.0), 10.0
    latest_s = 2 * timeout_s + head_start_s + report_s + 2 * head_start_s
    assert exchange_limit_s(timeout_s) > latest_s
    assert exchange_limit_s(timeout_s) >= 600.0, "before they are watched, ranks may be slow"
    assert exchange_limit_s(None) > exchange_limit_s(timeout_s)


def test_the_beats_of_an_earlier_run_are_not_taken_for_this_ones(tmp_path):
    earlier, gone = (HeartbeatFiles(tmp_path, rank=rank, world_size=4) for rank in (1, 3))
    earlier.write(Heartbeat(1, 99, 0, "step", 0.0))
    gone.write(Heartbeat(3, 99, 0, "step", 0.0))
    time.sleep(0.01)
    mine = HeartbeatFiles(tmp_path, rank=0, world_size=4)
    assert mine.read_others() == []
    HeartbeatFiles(tmp_path, rank=2, world_size=4).write(Heartbeat(2, 7, 1, "step", 5.0))
    (found,) = mine.read_others()
    assert (found.rank, found.step, found.turn, found.doing, found.began_at) == (2, 7, 1, "step", 5.0)
    assert 0 <= found.silent_s < 60
    earlier.write(Heartbeat(1, 7, 0, "waiting for data", 6.0))
    assert [beat.rank for beat in mine.read_others()] == [1, 2]
    earlier.remove_own()
    assert [beat.rank for beat in mine.read_others()] == [2]


def test_ranks_are_ordered_by_step_and_by_beat_within_it():
    waiting, stepping, next_step = (Heartbeat(0, step, turn, "", 0.0) for step, turn in ((3, 0), (3, 1), (4, 0)))
    assert waiting.is_behind(stepping) and stepping.is_behind(next_step) and waiting.is_behind(next_step)
    assert not stepping.is_behind(stepping) and not next_step.is_behind(waiting)


MANY_RANKS = """
import sys, time, torch
from pathlib import Path
from rankmixer_dist.parallel.heartbeat import Heartbeat, HeartbeatFiles
from rankmixer_dist.parallel.topology import Topology
from rankmixer_dist.parallel.watchdog import Watchdog, exchange_limit_s
folder = Path(sys.argv[1])
with Watchdog(Topology(0, 13, 0, 13, torch.device("cpu")), 1.0, folder) as watchdog:
    watchdog.beat(3, "step")
    while True:
        for rank in range(1, 12):
            step = 3 if rank == 11 else 1 if rank == 10 else 2
            HeartbeatFiles(folder, rank=rank, world_size=13).write(Heartbeat(rank, step, 0, "step", time.time()))
        time.sleep(0.05)
"""


def test_of_many_ranks_the_last_are_named(tmp_path):
    program = [sys.executable, "-c", MANY_RANKS, str(tmp_path)]
    ended = subprocess.run(program, capture_output=True, text=True, timeout=100, check=False)
    assert ended.returncode == EXIT_STALLED, ended.stderr
    line = ended.stderr.splitlines()[0]
    named = [int(rank) for rank in re.findall(r"rank (\d+), which was last seen at step \d 'step'", line)]
    assert named[0] == 10 and len(set(named)) == 8 and set(named) <= set(range(1, 11))
    assert line.endswith("; and 2 more; nothing is known of rank 12")
    assert float(re.search(r"not moved for (\d+\.\d) s", line)[1]) > 2.0, "those it waits for still moved: be patient"
