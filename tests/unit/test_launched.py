"""Whose end is the end of a rank: its launcher's, the deepspeed command's above it, and nobody else's."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import psutil
import pytest

RANK = """
import os, pathlib, signal, sys, time
begun, waits_s = pathlib.Path(sys.argv[1]), float(sys.argv[2])
time.sleep(waits_s)
from rankmixer_dist.command_line import run_verb
def main(arguments):
    if os.getpid() != 1:
        signal.signal(signal.SIGTERM, lambda *_: (begun.with_name("told").touch(), os._exit(75)))
    begun.touch()
    time.sleep(60)
run_verb(main)
"""
STARTER = """
import subprocess, sys
subprocess.Popen([sys.executable, "-c", *sys.argv[2:]])  # the first argument is for its command line alone
sys.stdin.read()
"""
BY_PYTHON = [sys.executable, "-c", STARTER, "-", RANK]
BY_SHELL = ["sh", "-c", '"$@" & read -r _', "sh", sys.executable, "-c", RANK]
BY_DEEPSPEED = [sys.executable, "-c", STARTER, "-", STARTER, "--log_level=info", RANK]
BY_PDSH = [sys.executable, "-c", STARTER, "-", STARTER, "-", RANK]
TORCHRUN = {"RANK": "0", "TORCHELASTIC_RUN_ID": "x"}
DEEPSPEED = {"RANK": "0", "CROSS_RANK": "0"}


@contextmanager
def without_launcher(command: list[str], begun: Path, env: dict[str, str], waits_s: float) -> Iterator[psutil.Process]:
    """A rank whose outermost launcher is killed once the rank has begun to work, or, if it waits, before that.

    What the rank says on standard error stands in a file `said` beside `begun`.
    """
    starts = [*command, str(begun), str(waits_s)]
    depth = command.count(STARTER) or 1
    with (
        open(begun.with_name("said"), "w") as said,
        subprocess.Popen(starts, env=os.environ | env, stdin=subprocess.PIPE, stderr=said) as launcher,
    ):
        family: list[psutil.Process] = []
        try:
            give_up = time.monotonic() + 60
            while len(family) < depth or not (waits_s or begun.exists()):
                assert time.monotonic() < give_up
                time.sleep(0.02)
                family = psutil.Process(launcher.pid).children(recursive=True)
            launcher.kill()
            launcher.wait()
            yield family[-1]
        finally:
            for process in reversed(family):
                if process.is_running():
                    process.kill()


def is_gone(process: psutil.Process, within_s: float) -> bool:
    give_up = time.monotonic() + within_s
    while process.is_running() and process.status() != psutil.STATUS_ZOMBIE:
        if time.monotonic() > give_up:
            return False
        time.sleep(0.02)
    return True


@pytest.mark.parametrize("env", [{"RANK": "0"}, TORCHRUN, DEEPSPEED])
def test_a_rank_dies_with_its_launcher(env: dict[str, str], tmp_path: Path) -> None:
    with without_launcher(BY_PYTHON, tmp_path / "begun", env, waits_s=0.0) as rank:
        assert is_gone(rank, 30)
    assert not (tmp_path / "told").exists()


@pytest.mark.parametrize(
    ("command", "env"),
    [
        (BY_PYTHON, {}),
        (BY_SHELL, {}),
        (BY_SHELL, {"RANK": "0"}),
        (BY_PDSH, DEEPSPEED),
        (BY_DEEPSPEED, {"RANK": "0"}),  # another launcher that has an option of this name, under nohup
    ],
)
def test_what_no_launcher_started_lives_on(command: list[str], env: dict[str, str], tmp_path: Path) -> None:
    with without_launcher(command, tmp_path / "begun", env, waits_s=0.0) as process:
        assert not is_gone(process, 2)


def test_a_rank_whose_launcher_died_before_it_came_to_work_does_not_begin(tmp_path: Path) -> None:
    with without_launcher(BY_PYTHON, tmp_path / "begun", TORCHRUN, waits_s=1.0) as rank:
        if rank.ppid() != 1:
            pytest.skip("orphans are not handed to process 1 here")
        assert is_gone(rank, 30)
    assert not (tmp_path / "begun").exists()


@pytest.mark.parametrize("waits_s", [0.0, 1.0])
def test_a_rank_is_told_to_stop_when_the_deepspeed_command_is_gone(waits_s: float, tmp_path: Path) -> None:
    with without_launcher(BY_DEEPSPEED, tmp_path / "begun", DEEPSPEED, waits_s) as rank:
        assert is_gone(rank, 30)
    assert (tmp_path / "told").exists() or waits_s, "killed, and not told"
    assert (tmp_path / "said").read_text() == "note: the deepspeed command is gone; its ranks stop, as at SIGTERM\n"


def test_the_first_process_of_a_container_hears_that_it_is_to_stop(tmp_path: Path) -> None:
    unshare = ["unshare", "--pid", "--fork", "--kill-child"]
    if subprocess.run([*unshare, "true"], capture_output=True, check=False).returncode:
        pytest.skip("no right to make a namespace of processes")
    with subprocess.Popen([*unshare, sys.executable, "-c", RANK, str(tmp_path / "begun"), "0"]) as outside:
        give_up = time.monotonic() + 60
        while not (tmp_path / "begun").exists():
            assert time.monotonic() < give_up
            time.sleep(0.02)
        (first,) = psutil.Process(outside.pid).children()
        first.send_signal(signal.SIGTERM)
        try:
            assert outside.wait(20) == 128 + signal.SIGTERM
        finally:
            outside.kill()
