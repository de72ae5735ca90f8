"""Checks of what ranks talk through: host name, loopback, gloo and NCCL."""

from __future__ import annotations

import socket
from datetime import timedelta

from rankmixer_dist.environment.check import REINSTALL, Check, describe, guarded

LOOPBACK = "127.0.0.1"


def hostname() -> Check:
    """The machine's own name resolves to one of its own addresses, which is where other ranks look for it."""
    name = socket.gethostname()
    mend = (
        f"one host needs none; for several, add a line `ADDRESS {name}` to /etc/hosts with the address that the others "
        "reach, in the place of one with 127., or set GLOO_SOCKET_IFNAME and NCCL_SOCKET_IFNAME to its interface"
    )
    try:
        address = socket.getaddrinfo(name, None, socket.AF_INET, socket.SOCK_STREAM)[0][4][0]
        with socket.socket() as listener:
            listener.bind((address, 0))
    except OSError as error:
        return Check("host name", f"{name}: {describe(error)}", "warn", mend)
    if str(address).startswith("127."):
        return Check("host name", f"{name} is {address}, which other hosts cannot reach", "warn", mend)
    return Check("host name", f"{name} is {address}")


@guarded("loopback", mend=f"bring the loopback interface up: ip link set lo up, and allow connections to {LOOPBACK}")
def loopback() -> Check:
    """A connection to this machine through the loopback interface carries bytes."""
    with socket.create_server((LOOPBACK, 0)) as server:
        server.settimeout(5)
        with socket.create_connection(server.getsockname(), timeout=5) as client:
            accepted, _ = server.accept()
            with accepted:
                client.sendall(b"x")
                received = accepted.recv(1)
    if received != b"x":
        return Check("loopback", "a byte got lost", "bad", f"allow connections to {LOOPBACK}")
    return Check("loopback", f"{LOOPBACK} answers")


@guarded("gloo", mend="set GLOO_SOCKET_IFNAME to a working interface, such as lo on one machine")
def gloo() -> Check:
    """A group of one rank over gloo, met through a TCP store as torchrun's ranks are, sums a tensor."""
    total = _sum_in_group_of_one("gloo", "cpu")
    if total != 3:
        return Check("gloo", f"a sum of 3 gave {total}", "bad", REINSTALL)
    return Check("gloo", "a group of one rank summed")


@guarded("nccl", mend="see what NCCL_DEBUG=INFO tells, and whether torch's CUDA version suits the driver")
def nccl() -> Check:
    """The same over NCCL where there are CUDA devices."""
    import torch

    if not torch.cuda.is_available():
        return Check("nccl", "not needed without CUDA devices")
    if not torch.distributed.is_nccl_available():
        return Check("nccl", "this torch has none", "bad", REINSTALL)
    total = _sum_in_group_of_one("nccl", "cuda:0")
    version = ".".join(map(str, torch.cuda.nccl.version()))
    if total != 3:
        return Check("nccl", f"{version}: a sum of 3 gave {total}", "bad", REINSTALL)
    return Check("nccl", f"{version}, a group of one rank summed")


def _sum_in_group_of_one(backend: str, device: str) -> float:
    import torch
    import torch.distributed as dist

    timeout = timedelta(seconds=20)
    store = dist.TCPStore(LOOPBACK, 0, world_size=1, is_master=True, timeout=timeout)
    dist.init_process_group(backend, store=store, rank=0, world_size=1, timeout=timeout)
    try:
        tensor = torch.tensor([1.0, 2.0], device=device)
        dist.all_reduce(tensor)
        return float(tensor.sum())
    finally:
        dist.destroy_process_group()
