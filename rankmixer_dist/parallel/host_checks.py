"""Checks that need several hosts at once: what the doctor shows under a launcher, or with `--peer`."""

import hashlib
import os
import platform
import socket
import time
from collections.abc import Callable, Sequence
from importlib import metadata
from pathlib import Path
from typing import Any

import torch

from rankmixer_dist.environment.check import Check, describe
from rankmixer_dist.environment.pins import pinned
from rankmixer_dist.errors import UserError
from rankmixer_dist.parallel.alike import require_shared
from rankmixer_dist.parallel.topology import Topology, all_gather_objects, barrier, process_group, sum_over_ranks
from rankmixer_dist.there import is_there

_TIMEOUT_S = 60.0
_CLOCKS_S = 1.0
"""Hosts' clocks may be so far apart: the watchdog compares their beats."""
_PARTIES = 2


def examine_hosts(runs: Path | None, prepared: Path | None) -> tuple[list[Check], bool]:
    """The checks, the same on all ranks, and whether this rank is the one to show them; all ranks call it.

    Args:
        runs, prepared: the config's `runs` and `data.prepared`, if there is a config.

    Raises:
        UserError: the ranks do not meet.
    """
    began = time.monotonic()
    with process_group(meet_s=_TIMEOUT_S, timeout_s=_TIMEOUT_S) as topology:
        ranks = f"{topology.world_size} ranks on {len(set(topology.hosts))} hosts"
        checks = [
            Check(
                "hosts",
                f"{ranks} met within {time.monotonic() - began:.1f} s: {', '.join(dict.fromkeys(topology.hosts))}",
            ),
            _exchange(topology, torch.device("cpu"), "gloo"),
            _versions(topology),
            _clocks(topology),
        ]
        if topology.device.type == "cuda":
            checks.append(_exchange(topology, topology.device, "nccl"))
        if runs is not None:
            checks.append(_runs(runs, topology))
        if prepared is not None:
            checks.append(_prepared(prepared, topology))
        return checks, topology.is_first


def meet_peer(peer: str) -> None:
    """Makes this process one of two ranks that meet at `HOST:PORT`: the first on the host whose address that is.

    Raises:
        UserError: no such address.
    """
    host, _, port = peer.rpartition(":")
    if not host or not port.isdecimal() or not 0 < int(port) < 2**16:
        raise UserError(f"--peer {peer!r} is not HOST:PORT, such as host0:29500; give the same on both hosts")
    try:
        address = socket.getaddrinfo(host, None, socket.AF_INET, socket.SOCK_STREAM)[0][4][0]
    except OSError as error:
        raise UserError(
            f"--peer: {host} has no address here ({describe(error)}); name the host as both know it"
        ) from error
    with socket.socket() as probe:
        try:
            probe.bind((address, 0))
            rank = 0
        except OSError:
            rank = 1
    names = {"RANK": rank, "WORLD_SIZE": _PARTIES, "LOCAL_RANK": 0, "LOCAL_WORLD_SIZE": 1}
    os.environ.update({name: str(value) for name, value in names.items()} | {"MASTER_ADDR": host, "MASTER_PORT": port})


def _exchange(topology: Topology, device: torch.device, name: str) -> Check:
    """A small sum and one of 16 MiB, which tells the rate of the slowest way."""
    total = float(sum_over_ranks(torch.tensor([float(topology.rank + 1)], device=device)))
    expected = topology.world_size * (topology.world_size + 1) / 2
    values = torch.ones(2**22, device=device)
    began = time.monotonic()
    sum_over_ranks(values)
    if device.type == "cuda":
        torch.cuda.synchronize()
    seconds = max(all_gather_objects(time.monotonic() - began))
    if total != expected:
        return Check(
            name, f"the sum over the ranks is {total}, not {expected}", "bad", f"see {name.upper()}_DEBUG=INFO"
        )
    return Check(name, f"the ranks summed; 16 MiB took {1000 * seconds:.0f} ms")


def _versions(topology: Topology) -> Check:
    mine = {"python": platform.python_version()} | {name: _version(name) for name in sorted(pinned())}
    return _alike("versions", mine, topology, mend="run bash launch/install.sh on each host, from the same tree")


def _version(name: str) -> str:
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return "none"


def _alike(name: str, mine: dict[str, str], topology: Topology, *, mend: str) -> Check:
    known: list[dict[str, str]] = all_gather_objects(mine)
    for key, usual in known[0].items():
        odd = {topology.hosts[rank]: other.get(key) for rank, other in enumerate(known) if other.get(key) != usual}
        if odd:
            told = ", ".join(f"{value} on {host}" for host, value in odd.items())
            return Check(name, f"{key} is {usual} on {topology.hosts[0]}, but {told}", "bad", mend)
    return Check(name, f"{len(mine)} are the same on all hosts")


def _clocks(topology: Topology) -> Check:
    barrier()
    times = all_gather_objects(time.time())
    apart = [at - times[0] for at in times]
    rank = max(range(len(apart)), key=lambda one: abs(apart[one]))
    found = f"{topology.hosts[rank]} is {apart[rank]:+.2f} s off {topology.hosts[0]}"
    if abs(apart[rank]) > _CLOCKS_S:
        return Check(
            "clocks",
            found,
            "warn",
            "set the clocks by NTP (timedatectl set-ntp true); logs and the watchdog compare them",
        )
    return Check("clocks", f"within {max(map(abs, apart)):.2f} s of each other")


def _runs(folder: Path, topology: Topology) -> Check:
    mend = "let `runs` be a folder on a file system that all hosts mount under the same path"

    def shared() -> None:
        if topology.is_first:
            folder.mkdir(parents=True, exist_ok=True)
        require_shared(folder, topology, key="runs")

    return _unless_raised("runs", shared, f"{folder} is one folder on all hosts", mend)


def _unless_raised(name: str, check: Callable[[], Any], found: str, mend: str) -> Check:
    try:
        check()
    except UserError as error:
        return Check(name, str(error), "bad", mend)
    return Check(name, found)


def _prepared(folder: Path, topology: Topology) -> Check:
    path = folder / "manifest.json"
    try:
        mine = hashlib.sha256(path.read_bytes()).hexdigest()[:12]
    except OSError as error:
        mine = error.strerror or describe(error)
    known: Sequence[str] = all_gather_objects(mine)
    mend = "let `data.prepared` be a folder that all hosts share, or have the same copy of"
    if len(set(known)) > 1:
        told = ", ".join(f"{said} on {host}" for host, said in dict(zip(topology.hosts, known, strict=True)).items())
        return Check("data", f"{path} differs: {told}", "bad", mend)
    if len(mine) != 12 or not is_there(path):
        return Check("data", f"{path}: {mine} on all hosts", "warn", "prepare the data first: launch/preprocess.py")
    return Check("data", f"{path} is the same on all hosts")
