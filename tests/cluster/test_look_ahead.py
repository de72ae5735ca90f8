"""Look-ahead on one host, and over a slow link between two: the same losses to the last bit, and what a row costs."""

import json
from contextlib import ExitStack
from pathlib import Path
from statistics import median

import pytest

from tests.cluster.hosts import Hosts

pytestmark = [pytest.mark.slow, pytest.mark.thorough, pytest.mark.distributed, pytest.mark.timeout(900)]
LINK = {"mbit_s": 200.0, "delay_ms": 5.0}
ROUNDS, STEPS = "5", "18"
SCRIPT = "tests/cluster/look_ahead_cases.py"


def check(said: str) -> None:
    """That every run of a case had the same losses; prints rows and CPU seconds beside each other."""
    line = next(line for line in said.splitlines() if '{"ahead"' in line)
    found = json.loads(line[line.index("{") :])  # behind the rank's name, on several hosts
    losses = [run["losses"] for name in ("ahead", "behind") for run in found[name]]
    assert all(of_run == losses[0] for of_run in losses)
    for name in ("ahead", "behind"):
        wall, cpu = (median(run[unit] for run in found[name]) for unit in ("wall_s", "cpu_s"))
        print(f"{name}: {found['rows'] / wall:,.0f} rows/s, {cpu / found['rows'] * 1e6:,.1f} CPU s a million rows")


def test_on_one_host(launch, small_config: Path) -> None:
    ended = launch.torchrun(SCRIPT, str(small_config), ROUNDS, STEPS, ranks=2)
    assert ended.returncode == 0, ended.stderr[-3000:]
    check(ended.stdout)


def test_over_a_slow_link(small_config: Path, tmp_path: Path) -> None:
    logs = [tmp_path / f"host{index}.log" for index in range(2)]
    with ExitStack() as stack:
        hosts = stack.enter_context(Hosts(2))
        link = stack.enter_context(hosts.slow_link(**LINK))
        jobs = [
            hosts.torchrun(
                index, SCRIPT, str(small_config), ROUNDS, STEPS, log=logs[index], nodes="2", GLOO_SOCKET_IFNAME=link
            )
            for index in range(2)
        ]
        assert [job.wait(600) for job in jobs] == [0, 0], [log.read_text()[-2000:] for log in logs]
    check(logs[0].read_text() + logs[1].read_text())
