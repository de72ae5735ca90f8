"""Hosts on one machine: network namespaces with names of their own, on one switch, that can lose their power."""

import os
import re
import shutil
import signal
import subprocess
import sys
import time
import uuid
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from types import MappingProxyType
from typing import Any

import pytest

ROOT = Path(__file__).resolve().parents[2]
_SUBNET, _SLOW_SUBNET = "10.203.77", "10.203.78"


def run(*command: str) -> str:
    """A command's output; it must end well."""
    return subprocess.run(command, check=True, capture_output=True, text=True).stdout


class Hosts:
    """`count` hosts, host0 and so on, who resolve each other's names; for the length of a `with` block.

    Skips the test where namespaces cannot be made.
    """

    def __init__(self, count: int, *, loopback_name: bool = False) -> None:
        self.names = [f"host{index}" for index in range(count)]
        self._id = f"rm{os.getpid()}-{uuid.uuid4().hex[:4]}"
        self._jobs: list[subprocess.Popen] = []
        self._loopback_name = loopback_name

    def __enter__(self) -> "Hosts":
        if os.geteuid() != 0 or shutil.which("ip") is None:
            pytest.skip("hosts are network namespaces: needs root and iproute2")
        try:
            self._make()
        except subprocess.CalledProcessError as error:
            self.__exit__()
            pytest.skip(f"hosts are network namespaces, which cannot be made here: {error.stderr.strip()}")
        return self

    def _make(self) -> None:
        _remove_left_ones()
        switch = f"{self._id}s"
        run("ip", "netns", "add", switch)
        run("ip", "-n", switch, "link", "add", "br0", "type", "bridge")
        run("ip", "-n", switch, "link", "set", "br0", "up")
        for index, _ in enumerate(self.names):
            space = self._space(index)
            run("ip", "netns", "add", space)
            run(
                "ip",
                "-n",
                switch,
                "link",
                "add",
                f"port{index}",
                "type",
                "veth",
                "peer",
                "name",
                "eth0",
                "netns",
                space,
            )
            run("ip", "-n", switch, "link", "set", f"port{index}", "master", "br0", "up")
            run("ip", "-n", space, "address", "add", f"{self.address(index)}/24", "dev", "eth0")
            for link in ("lo", "eth0"):
                run("ip", "-n", space, "link", "set", link, "up")
            folder = Path("/etc/netns") / space
            folder.mkdir(parents=True)
            known = [f"{self.address(other)} {name}" for other, name in enumerate(self.names)]
            if self._loopback_name:  # as Debian's installer writes it
                known.insert(0, f"127.0.1.1 {self.names[index]}")
            (folder / "hosts").write_text("\n".join(["127.0.0.1 localhost", *known, ""]))

    def __exit__(self, *_: object) -> None:
        for index in range(len(self.names)):
            self.kill(index)
            shutil.rmtree(Path("/etc/netns") / self._space(index), ignore_errors=True)
        for job in self._jobs:
            job.wait()
        for space in [*map(self._space, range(len(self.names))), f"{self._id}s"]:
            subprocess.run(["ip", "netns", "delete", space], check=False, capture_output=True)

    def start(
        self, index: int, *command: str, log: Path, mounts: Mapping[Path, Path] = MappingProxyType({}), **env: str
    ) -> subprocess.Popen:
        """Starts a command on a host, from the root of this tree; what it says goes to the end of `log`.

        Args:
            mounts: folders that on this host are not what they are elsewhere, and what they are.
        """
        own = "".join(f"mount --bind '{source}' '{target}' && " for target, source in mounts.items())
        inside = ["unshare", "--uts", "sh", "-c", f'hostname "$0" && {own}exec "$@"', self.names[index], *command]
        values = {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT), "DS_ACCELERATOR": "cpu", "CUDA_VISIBLE_DEVICES": ""}
        with log.open("ab") as file:
            job = subprocess.Popen(
                ["ip", "netns", "exec", self._space(index), *inside],
                env=os.environ | values | {"GLOO_SOCKET_IFNAME": "eth0", "PYTHON": sys.executable} | env,
                cwd=ROOT, stdin=subprocess.DEVNULL, stdout=file, stderr=file,
            )  # fmt: skip
        self._jobs.append(job)
        return job

    def torchrun(self, index: int, *arguments: str, log: Path, nodes: str, **more: Any) -> subprocess.Popen:
        """launch/torchrun.py with one rank on each of `nodes` hosts that meet at host0."""
        meeting = ["--rdzv_endpoint=host0:29500", "--rdzv_id=bed", "--rdzv_conf=last_call_timeout=2,join_timeout=120"]
        options = [f"--nnodes={nodes}", "--nproc_per_node=1", "--max_restarts=3", *meeting]
        return self.start(index, sys.executable, "launch/torchrun.py", *options, *arguments, log=log, **more)

    @contextmanager
    def slow_link(self, *, mbit_s: float, delay_ms: float) -> Iterator[str]:
        """A second link between the first two hosts, of this rate and one-way delay; yields its interface's name.

        Skips the test where there are no TUN devices.
        """
        if not Path("/dev/net/tun").exists():
            pytest.skip("a slow link needs /dev/net/tun")
        ends = [f"{self._space(index)}={_SLOW_SUBNET}.{index + 1}" for index in range(2)]
        command = [sys.executable, str(ROOT / "tests/cluster/slow_link.py"), "slow0", str(mbit_s), str(delay_ms), *ends]
        relay = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
        try:
            assert relay.stdout is not None and relay.stdout.readline() == "ready\n"
            yield "slow0"
        finally:
            relay.kill()
            relay.wait()

    def cut_power(self, index: int) -> None:
        """The others see nothing more of this host: no packet says that its processes are gone."""
        run("ip", "-n", f"{self._id}s", "link", "set", f"port{index}", "down")
        self.kill(index)

    def give_power(self, index: int) -> None:
        """The host is there again, with none of its processes."""
        run("ip", "-n", f"{self._id}s", "link", "set", f"port{index}", "up")

    def address(self, index: int) -> str:
        """A host's address."""
        return f"{_SUBNET}.{index + 1}"

    def _space(self, index: int) -> str:
        return f"{self._id}h{index}"

    def kill(self, index: int) -> None:
        """Ends all processes of a host at once; the network says so to the others."""
        pids = subprocess.run(["ip", "netns", "pids", self._space(index)], capture_output=True, text=True, check=False)
        for pid in map(int, pids.stdout.split()):
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)


def _remove_left_ones() -> None:
    """Namespaces of a test process that was killed."""
    for line in run("ip", "netns", "list").splitlines():
        owner = re.match(r"rm(\d+)-", line)
        if owner and not Path("/proc", owner[1]).exists():
            subprocess.run(["ip", "netns", "delete", line.split()[0]], check=False, capture_output=True)
            shutil.rmtree(Path("/etc/netns") / line.split()[0], ignore_errors=True)


@contextmanager
def told_on_failure(*logs: Path) -> Iterator[None]:
    """When the block fails, shows the ends of the logs."""
    try:
        yield
    except BaseException:
        for log in logs:
            print(f"== {log.name}\n{log.read_text()[-3000:] if log.exists() else 'nothing'}")
        raise


def until(condition, what: str, *, within_s: float = 150.0, jobs=()) -> None:
    """Waits for something that must come, while `jobs` run."""
    give_up = time.monotonic() + within_s
    while not condition():
        assert time.monotonic() < give_up, f"waited in vain until {what}"
        codes = [job.poll() for job in jobs]
        assert not any(code is not None for code in codes), f"ended with {codes} before {what}"
        time.sleep(0.02)
