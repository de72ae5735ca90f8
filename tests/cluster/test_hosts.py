"""Trainings over several hosts that go away and come back, differ, share nothing, or are slow."""

import json
import re
import sys
from contextlib import ExitStack
from pathlib import Path

import numpy as np
import pytest

from data_pipeline.preprocess import preprocess
from rankmixer_dist.config import load_config
from rankmixer_dist.errors import EXIT_USER_ERROR
from rankmixer_dist.train.row_audit import trained_rows
from tests.cluster.hosts import Hosts, told_on_failure, until
from tests.integration.jobs import Run, a_run
from tests.integration.test_kills import train_rows

pytestmark = [pytest.mark.slow, pytest.mark.thorough, pytest.mark.distributed, pytest.mark.timeout(900)]
STALL = "train.stall_timeout_s=10"
END_S = 300.0


class Job:
    """A run with a rank on each of several hosts, one log a host."""

    def __init__(self, stack: ExitStack, run: Run, folder: Path, hosts: int, nodes: str | None = None) -> None:
        self.run, self.logs = run, [folder / f"host{index}.log" for index in range(hosts)]
        self.hosts, self._nodes = stack.enter_context(Hosts(hosts)), nodes or str(hosts)
        stack.enter_context(told_on_failure(*self.logs))

    def start(self, index: int, *more: str, script: str = "launch/train.py", **options):
        """The launcher of a host."""
        arguments = [script, *self.run.arguments()[1:], STALL, *more]
        return self.hosts.torchrun(index, *arguments, log=self.logs[index], nodes=self._nodes, **options)

    def log(self, index: int) -> str:
        return self.logs[index].read_text()

    def errors(self, index: int) -> list[str]:
        return [line for line in self.log(index).splitlines() if re.match(r"(\[.*\] )?error: ", line)]


def check_each_row_once(run: Run, epochs: int) -> None:
    assert np.array_equal(np.sort(trained_rows(run.folder)), train_rows(run, epochs))
    steps = [step for step, _ in run.losses()]
    assert steps == list(range(1, len(steps) + 1))


def test_a_host_loses_its_power_and_comes_back(small_config: Path, tmp_path: Path) -> None:
    run = a_run(small_config, "power", epochs=8, batch_size=64)
    with ExitStack() as stack:
        job = Job(stack, run, tmp_path, hosts=2, nodes="1:2")
        first, second = job.start(0), job.start(1)
        until(lambda: run.lines() >= 8, "both train", jobs=[first, second])
        job.hosts.cut_power(1)
        until(lambda: "1 ranks on cpu" in job.log(0), "the other goes on alone", jobs=[first])
        assert re.search(
            r"watchdog: rank 0 on host0 .* waits for rank 1 on host1, .* has given no sign of life",
            job.log(0),
        )
        before = run.lines()
        until(lambda: run.lines() >= before + 8, "it trains alone", jobs=[first])
        job.hosts.give_power(1)
        second = job.start(1)
        assert [one.wait(END_S) for one in (first, second)] == [0, 0]
        said = re.findall(r"power: (\d) ranks on cpu", job.log(0))
        assert said[0] == "2" and "1" in said and said[-1] == "2", said
    check_each_row_once(run, 8)


def test_an_agent_is_replaced_on_four_hosts(small_config: Path, tmp_path: Path) -> None:
    run = a_run(small_config, "replaced", epochs=3, batch_size=64)
    with ExitStack() as stack:
        job = Job(stack, run, tmp_path, hosts=4)
        agents = [job.start(index) for index in range(4)]
        until(lambda: run.lines() >= 8, "all train", jobs=agents)
        job.hosts.kill(2)
        agents[2] = job.start(2)
        assert [agent.wait(END_S) for agent in agents] == [0, 0, 0, 0]
        assert sum(job.log(index).count("replaced: 4 ranks on cpu") for index in range(4)) == 2
    hosts = json.loads((run.folder / "plan.json").read_text())["hosts"]
    assert sorted(hosts) == ["host0", "host1", "host2", "host3"]
    assert sorted(rank for ranks in hosts.values() for rank in ranks) == [0, 1, 2, 3]
    check_each_row_once(run, 3)


def test_launchers_end_when_the_head_is_gone(small_config: Path, tmp_path: Path) -> None:
    run = a_run(small_config, "headless", epochs=8, batch_size=64)
    with ExitStack() as stack:
        job = Job(stack, run, tmp_path, hosts=2)
        agents = [job.start(index) for index in range(2)]
        until(lambda: run.lines() >= 8, "both train", jobs=agents)
        job.hosts.cut_power(0)
        assert agents[1].wait(END_S) == 1
        assert "error: the hosts do not meet at host0:29500 any more" in job.log(1)


def test_hosts_that_differ_are_refused(small_config: Path, tmp_path: Path) -> None:
    run = a_run(small_config, "differ", epochs=3, batch_size=64)
    config, other = load_config(small_config), tmp_path / "other"
    changes = [f"source.path={tmp_path / 'raw'}", "source.seed=8", f"data.prepared={other}"]
    preprocess(load_config(small_config, changes), progress=False)
    with ExitStack() as stack:
        job = Job(stack, run, tmp_path, hosts=2)
        for changes, mounts, key in (
            (["dense.lr=0.002"], {}, "dense.lr"),
            (["seed=8"], {}, "seed"),
            ([], {config.data.prepared: other}, "prepared"),
        ):
            agents = [job.start(0), job.start(1, *changes, mounts=mounts)]
            assert [agent.wait(END_S) for agent in agents] == [EXIT_USER_ERROR] * 2
            for index in range(2):
                line = job.errors(index)[-1]
                assert re.search(rf"ranks differ: .*{key} is .* host host[01], and .* host host[01]", line), line
        assert len(job.errors(1)) == 3
        assert not run.folder.exists()


def test_runs_that_are_not_shared_are_refused_at_the_first_save(small_config: Path, tmp_path: Path) -> None:
    run = a_run(small_config, "unshared", epochs=1, batch_size=64)
    run.folder.parent.mkdir(exist_ok=True)
    (empty := tmp_path / "empty").mkdir()
    with ExitStack() as stack:
        job = Job(stack, run, tmp_path, hosts=2)
        agents = [job.start(0), job.start(1, mounts={run.folder.parent: empty})]
        assert [agent.wait(END_S) for agent in agents] == [EXIT_USER_ERROR] * 2
        (line,) = job.errors(1)
        assert "host1" in line and "share" in line, line


def test_a_host_with_a_slow_disk_is_named(small_config: Path, tmp_path: Path) -> None:
    run = a_run(small_config, "slow", epochs=1, batch_size=64)
    with ExitStack() as stack:
        job = Job(stack, run, tmp_path, hosts=2)
        agents = [job.start(0), job.start(1, script="tests/cluster/slow_train.py")]
        assert [agent.wait(END_S) for agent in agents] == [0, 0]
        (slow,) = json.loads((run.folder / "plan.json").read_text())["hosts"]["host1"]
        assert re.search(
            rf"rank {slow} on host1 waits for data \S+ ms a step, the median rank", "".join(map(job.log, (0, 1)))
        )
    lines = [json.loads(line) for line in (run.folder / "metrics.jsonl").read_text().splitlines()]
    slowest = [line["ranks"]["data_wait_s"]["host"] for line in lines]
    assert slowest.count("host1") > 0.8 * len(lines), "the last steps were read ahead"


def test_the_doctor_looks_at_all_hosts(small_config: Path, tmp_path: Path) -> None:
    run = a_run(small_config, "examined", epochs=1, batch_size=64)
    run.folder.parent.mkdir(exist_ok=True)
    (empty := tmp_path / "empty").mkdir()
    with ExitStack() as stack:
        job = Job(stack, run, tmp_path, hosts=2)
        multinode = ["bash", "launch/cluster/torchrun_multinode.sh", str(small_config)]
        env = {"HEAD": "host0", "NODES": "2", "RANKS_PER_NODE": "1", "VERB": "launch/doctor.py", "COLUMNS": "300"}

        def examined(*command: str, code: int, mounts: dict[Path, Path]) -> str:
            for log in job.logs:
                log.write_text("")
            doctors = [
                job.hosts.start(index, *command, log=job.logs[index], mounts=mounts if index else {}, **env)
                for index in range(2)
            ]
            assert [doctor.wait(END_S) for doctor in doctors] == [code, code]
            return job.log(0) + job.log(1)

        told = examined(*multinode, code=0, mounts={})
        for words in ("2 ranks on 2 hosts met", "16 MiB took", "are the same on all hosts", "is one folder on all"):
            assert words in told
        peer = examined("sh", "-c", "$PYTHON launch/doctor.py --peer host1:29511", code=0, mounts={})
        assert "2 ranks on 2 hosts met" in peer
        told = examined(*multinode, code=EXIT_USER_ERROR, mounts={run.folder.parent: empty})
        assert re.search(r"bad: runs: .*runs", told) and "host1" in told


def test_a_name_that_leads_to_the_loopback_is_told(small_config: Path, tmp_path: Path) -> None:
    log = tmp_path / "log"
    with Hosts(1, loopback_name=True) as hosts, told_on_failure(log):
        names = {
            "RANK": "0",
            "WORLD_SIZE": "2",
            "LOCAL_WORLD_SIZE": "1",
            "MASTER_ADDR": "host0",
            "MASTER_PORT": "29500",
        }
        train = hosts.start(
            0, sys.executable, "launch/train.py", str(small_config), log=log, GLOO_SOCKET_IFNAME="", **names
        )
        assert train.wait(END_S) == EXIT_USER_ERROR
    assert (
        "error: the name of this host, host0, leads to 127.0.1.1, where other hosts cannot reach it" in log.read_text()
    )
