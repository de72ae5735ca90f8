"""Where ranks meet before they form a group: on one host on the loopback only, and who is missing is told."""

import json
import os
import socket
import sys
import time
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import timedelta
from threading import Event, Thread

import torch.distributed as dist

from rankmixer_dist.errors import RankError, UserError, one_line

LOOPBACK = "127.0.0.1"
_TOLD_AFTER_S, _TOLD_EVERY_S = 10.0, 60.0
_NAME_S, _NAME_IN_KUBERNETES_S = 10.0, 600.0
"""How long a name may lead nowhere. In Kubernetes a pod's name is there once the pod has an address."""
_MOST_NAMED = 8
_LOOKS_PER_S = 5000
"""Of all ranks together into the store, whose one thread answers them; each look is up to four questions."""


def meeting_store(rank: int, world_size: int, local_world_size: int, timeout_s: float) -> dist.Store:
    """A store of this start of the ranks, in which all of them have been; MASTER_ADDR and MASTER_PORT say where.

    Who waits for more than 10 s says for whom, on standard error.

    Raises:
        UserError: the port is taken on rank 0's host, or a rank did not come within `timeout_s`.
        DistNetworkError: the same where torchrun chose ranks and port: its next start finds others.
    """
    host, port = _meeting_place()
    one_host = local_world_size == world_size and (
        "LOCAL_WORLD_SIZE" in os.environ or "LOCAL_SIZE" in os.environ or _is_loopback(host)
    )
    if one_host:
        host = LOOPBACK
        stay_on_loopback()
    else:
        require_address(host, f"MASTER_ADDR {host}")
        _require_reachable_name()
    timeout = timedelta(seconds=timeout_s)
    has_store = rank == 0 and os.environ.get("TORCHELASTIC_USE_AGENT_STORE") != "True"
    fd = _listener(host, port) if has_store and one_host else None
    with _told_when_late(lambda: f"rank {rank} waits for rank 0 at {host}:{port}"):
        try:
            store = dist.TCPStore(host, port, None, has_store, timeout, wait_for_workers=False, master_listen_fd=fd)
        except dist.DistNetworkError as error:
            if has_store:
                raise _taken(port, error) from error
            raise _unmet(f"rank 0 did not come to {host}:{port} within {timeout_s:g} s; is it started?") from error
    return _of_this_start(store, rank, world_size, timeout_s)


def stay_on_loopback() -> None:
    """Of one host: else gloo and NCCL listen where the host's name leads, which others may reach; also for one rank."""
    for name in ("GLOO_SOCKET_IFNAME", "NCCL_SOCKET_IFNAME"):
        os.environ[name] = os.environ.get(name) or "lo"


def require_address(host: str, key: str) -> None:
    """Makes sure that a host's name leads to an address; a name that appears late is waited for, and this is told.

    Whether anybody listens there is another question: the first host may come last.

    Raises:
        UserError: no address is found, 10 s long; `key` begins the line.
        DistNetworkError: nor is one in a pod of Kubernetes, 600 s long; the first pod may still wait for a node.
    """
    in_pod = "KUBERNETES_SERVICE_HOST" in os.environ
    limit_s, kind = (_NAME_IN_KUBERNETES_S, dist.DistNetworkError) if in_pod else (_NAME_S, UserError)
    began, told = time.monotonic(), False
    while True:
        try:
            socket.getaddrinfo(host, None, type=socket.SOCK_STREAM)
            return
        except UnicodeError as error:  # a part of the name is empty or too long
            raise UserError(f"{key}: {host!r} is no name of a host; name it as all hosts know it") from error
        except OSError as error:
            why = error.strerror or one_line(error)
        left_s = began + limit_s - time.monotonic()
        if left_s <= 0:
            raise kind(
                f"{key}: {host} has no address here ({why}), nor has it had one for {limit_s:g} s; name the first host "
                "as all hosts know it, or write its address into /etc/hosts"
            )
        if not told:
            _tell(f"{key}: {host} has no address yet ({why}); it is asked for again and again, for {limit_s:g} s")
            told = True
        time.sleep(min(0.5, left_s))


def judged(store: dist.Store, rank: int, world_size: int, mine: str, judge: Callable[[list[str]], str]) -> str:
    """What `judge` makes of what each rank says, in rank order; rank 0 judges for all.

    Raises:
        UserError: `judge` did; on all ranks.
    """
    if rank == 0:
        keys = [f"said/{other}" for other in range(1, world_size)]
        others = store.multi_get(keys) if keys else []  # waits for them
        try:
            verdict = {"agreed": judge([mine, *(other.decode() for other in others)])}
        except UserError as error:
            verdict = {"refused": str(error)}
        store.set("verdict", json.dumps(verdict))
    else:
        store.set(f"said/{rank}", mine)
        verdict = json.loads(store.get("verdict"))
    if "refused" in verdict:
        raise UserError(verdict["refused"])
    return verdict["agreed"]


def _meeting_place() -> tuple[str, int]:
    host, port = os.environ["MASTER_ADDR"], os.environ["MASTER_PORT"]
    if not port.isdecimal() or not 0 < int(port) < 2**16:
        raise UserError(f"MASTER_PORT is {port!r}; make it a free port of rank 0's host, 1024 to 65535")
    return host, int(port)


def _require_reachable_name() -> None:
    """Of several hosts: gloo listens where the own name leads, unless it is told an interface."""
    if os.environ.get("GLOO_SOCKET_IFNAME"):
        return
    name = socket.gethostname()
    try:
        address = socket.gethostbyname(name)
    except OSError:
        address = "no address"
    if address == "no address" or address.startswith("127."):
        raise RankError(
            f"the name of this host, {name}, leads to {address}, where other hosts cannot reach it; write its address "
            "in their network into /etc/hosts, or set GLOO_SOCKET_IFNAME and NCCL_SOCKET_IFNAME to its interface"
        )


def _is_loopback(host: str) -> bool:
    return host in ("localhost", "::1") or host.startswith("127.")


def _listener(host: str, port: int) -> int:
    """A socket that listens on one address, as TCPStore itself cannot: it takes all interfaces."""
    with socket.socket() as listener:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            listener.bind((host, port))
        except OSError as error:
            raise _taken(port, error) from error
        listener.listen(4096)
        return listener.detach()


def _taken(port: int, error: Exception) -> Exception:
    mend = "start again" if _by_torchrun() else "choose another MASTER_PORT (deepspeed: --master_port)"
    return _unmet(f"port {port} cannot be listened on ({error}); {mend}")


def _unmet(line: str) -> Exception:
    """A mistake of who started the ranks; but a host that torchrun counted on may be lost, and a port taken since."""
    return dist.DistNetworkError(line) if _by_torchrun() else UserError(line)


def _by_torchrun() -> bool:
    return "TORCHELASTIC_RUN_ID" in os.environ


def _of_this_start(store: dist.Store, rank: int, world_size: int, timeout_s: float) -> dist.Store:
    """A part of the store in which no rank of an earlier start has written.

    torchrun 2.13 keeps one store for all starts of its ranks, who would find the addresses of the dead in it. Nor can
    its environment tell the starts apart: each node counts its own restarts. So rank 0 numbers them, and the others
    believe a number once rank 0 has answered to a word that they have just made up.
    """
    store, give_up = dist.PrefixStore("starts/", store), time.monotonic() + timeout_s
    if rank == 0:
        start = store.add("count", 1)
        store.set("newest", str(start))
        _wait_for_all(store, start, world_size, give_up)
        words = store.multi_get([f"{start}/{other}" for other in range(1, world_size)])
        answers = [f"{start}/{word.decode()}" for word in words]
        store.multi_set(answers, [""] * len(answers))  # type: ignore[attr-defined]  # torch's stubs leave it out
        return dist.PrefixStore(f"{start}/group/", store)
    word = uuid.uuid4().hex
    with _told_when_late(lambda: f"rank {rank} waits for rank 0, or for others that rank 0 waits for"):
        while time.monotonic() < give_up:
            if store.check(["newest"]):
                start = int(store.get("newest"))
                store.set(f"{start}/{rank}", word)
                if store.check([f"{start}/{word}"]):
                    return dist.PrefixStore(f"{start}/group/", store)
            time.sleep(_pause_s(world_size))
    raise _unmet(f"rank 0 did not answer within {timeout_s:g} s; are all ranks started?")


def _wait_for_all(store: dist.Store, start: int, world_size: int, give_up: float) -> None:
    def missing() -> list[int]:
        return [other for other in range(1, world_size) if not store.check([f"{start}/{other}"])]

    told = time.monotonic() + _TOLD_AFTER_S
    keys = [f"{start}/{other}" for other in range(1, world_size)]
    while not store.check(keys):
        now = time.monotonic()
        if now > give_up:
            raise _unmet(f"{_named(missing())} of {world_size} did not come; start all of them at about the same time")
        if now > told:
            _tell(f"rank 0 waits for {_named(missing())} of {world_size}")
            told = now + _TOLD_EVERY_S
        time.sleep(_pause_s(world_size))


def _pause_s(world_size: int) -> float:
    """Between two looks into the store: all ranks together ask it about as often, however many they are."""
    return max(0.02, world_size / _LOOKS_PER_S)


def _named(ranks: list[int]) -> str:
    more = f" and {len(ranks) - _MOST_NAMED} more" if len(ranks) > _MOST_NAMED else ""
    return f"rank {', '.join(map(str, ranks[:_MOST_NAMED]))}{more}"


@contextmanager
def _told_when_late(line: Callable[[], str]) -> Iterator[None]:
    """Says `line` when the block lasts more than 10 s, and again each minute."""
    over = Event()

    def tell() -> None:
        wait_s = _TOLD_AFTER_S
        while not over.wait(wait_s):
            _tell(line())
            wait_s = _TOLD_EVERY_S

    Thread(target=tell, daemon=True).start()
    try:
        yield
    finally:
        over.set()


def _tell(line: str) -> None:
    print(f"{socket.gethostname()}: {line}", file=sys.stderr, flush=True)
