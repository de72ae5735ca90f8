"""A job whose launcher is killed, that is asked to stop, or that finds another one in its run directory."""

import re
import signal
import socket
from contextlib import ExitStack
from pathlib import Path

import psutil
import pytest

from rankmixer_dist.checkpoint.folder import checkpoints, step_of
from rankmixer_dist.errors import EXIT_PREEMPTED
from tests.integration.jobs import PATIENCE_S, RANKS, finish, new_ranks, torchrun, until

pytestmark = [pytest.mark.slow, pytest.mark.distributed, pytest.mark.timeout(900)]


def is_gone(process: psutil.Process) -> bool:
    try:
        return process.status() == psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return True


def files(folder: Path) -> dict[Path, tuple[int, int, int]]:
    """Which files there are, and whether they are still the same; the beats of living ranks aside."""
    stats = {path: path.stat() for path in folder.rglob("*") if "watchdog" not in path.parts}
    return {path: (stat.st_ino, stat.st_size, stat.st_mtime_ns) for path, stat in stats.items()}


@pytest.mark.thorough
def test_ranks_die_with_their_launcher(launch, calm, tmp_path):
    run = calm.run.named("launcher_killed")
    for moment, steps in (("starting", 0), ("training", 8)):
        with launch.started(*torchrun(run), log=tmp_path / moment) as launcher:
            ranks = new_ranks(launcher)  # which have yet to say that they want to die with it
            if steps:
                until(lambda: run.lines() >= steps, "it trains", launcher)  # noqa: B023
            launcher.kill()
            launcher.wait()
        until(lambda: all(map(is_gone, ranks.values())), "its ranks are gone")  # noqa: B023
    with launch.started(*torchrun(run), log=tmp_path / "again") as launcher:
        finish(launcher, tmp_path / "again")
    assert run.losses() == calm.run.losses()


@pytest.mark.thorough
def test_a_second_job_leaves_the_first_one_alone(launch, calm, tmp_path):
    run = calm.run.named("two_jobs")
    with ExitStack() as jobs:
        first = jobs.enter_context(launch.started(*torchrun(run), log=tmp_path / "first"))
        ranks = new_ranks(first)
        until(lambda: run.lines() >= 3, "it trains", first)
        for rank in ranks.values():
            rank.suspend()  # or it might be done before the second one comes
        before = files(run.folder)
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            address = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(probe.getsockname()[1])}
        seconds = []
        for rank in range(RANKS):
            env = {"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": str(RANKS), **address}
            command = [*run.arguments(), "train.log_every=2"]
            seconds.append(jobs.enter_context(launch.started(*command, log=tmp_path / f"second-{rank}", **env)))
        assert [second.wait(PATIENCE_S) for second in seconds] == [2] * RANKS
        assert (tmp_path / "second-1").read_text() == ""
        said = [line for line in (tmp_path / "second-0").read_text().splitlines() if line.startswith("error: ")]
        assert len(said) == 1
        assert re.search(
            rf"two_jobs: process {ranks[0].pid} on .+ trains here; stop it, or choose another `name`", *said
        )
        assert files(run.folder) == before
        for rank in ranks.values():
            rank.resume()
        finish(first, tmp_path / "first")
    assert run.losses() == calm.run.losses()


@pytest.mark.parametrize("ranks", [1, pytest.param(RANKS, marks=pytest.mark.thorough)])
def test_a_job_that_is_asked_to_stop_saves_and_goes_on_later(launch, request, tmp_path, ranks):
    calm = request.getfixturevalue("calm_alone" if ranks == 1 else "calm")
    run = calm.run.named(f"stopped_{ranks}")
    command = run.arguments() if ranks == 1 else torchrun(run)
    with launch.started(*command, log=tmp_path / "log") as process:
        until(lambda: run.lines() >= 7, "it trains", process)
        process.send_signal(signal.SIGTERM)
        code = process.wait(PATIENCE_S)
    log = (tmp_path / "log").read_text()
    assert code == EXIT_PREEMPTED, log[-3000:]
    (step,) = re.findall(r"^stopped: asked to stop; saved at step (\d+) of ", log, re.MULTILINE)
    assert step_of(checkpoints(run.folder)[-1]) == int(step) == run.lines()
    assert int(step) < len(calm.run.losses())
    with launch.started(*command, log=tmp_path / "again") as process:
        finish(process, tmp_path / "again")
    assert f"goes on from {checkpoints(run.folder)[0].parent}" in (tmp_path / "again").read_text()
    assert run.losses() == calm.run.losses()
