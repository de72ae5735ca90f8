"""On one host nothing answers on the network."""

from contextlib import suppress

import psutil
import pytest

from tests.integration.jobs import RANKS, Run, finish, torchrun, until

pytestmark = [pytest.mark.slow, pytest.mark.distributed, pytest.mark.timeout(300)]


def listeners(launcher) -> list[tuple[str, str]]:
    """(address, command) of every listening socket of a launcher and all that came from it."""
    found = []
    root = psutil.Process(launcher.pid)
    for process in (root, *root.children(recursive=True)):
        with suppress(psutil.NoSuchProcess):
            for one in process.net_connections("inet"):
                if one.status == psutil.CONN_LISTEN:
                    found.append((one.laddr.ip, " ".join(process.cmdline()[:3])))
    return found


@pytest.mark.parametrize("launcher", ["torchrun", pytest.param("deepspeed", marks=pytest.mark.thorough)])
def test_a_training_listens_on_the_loopback_only(launch, small_config, tmp_path, launcher):
    run = Run(small_config, (f"name=listens_{launcher}", "train.max_steps=12"))
    command = torchrun(run)
    if launcher == "deepspeed":
        command = ["-m", "deepspeed.launcher.runner", f"--num_gpus={RANKS}", *run.arguments()]
    without = {"GLOO_SOCKET_IFNAME": "", "NCCL_SOCKET_IFNAME": ""}
    with launch.started(*command, log=tmp_path / "log", **without) as process:
        until(lambda: run.lines() >= 3, "it trains", process)
        found = listeners(process)
        finish(process, tmp_path / "log")
    assert found and {address for address, _ in found} == {"127.0.0.1"}, found
    if launcher == "torchrun":
        assert not [by for _, by in found if "torchrun.py" in by], "the launcher itself listens"
    assert len(run.losses()) == 12
