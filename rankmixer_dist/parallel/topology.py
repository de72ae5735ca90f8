"""Where this process stands among the ranks, under python, torchrun, deepspeed or srun alike."""

import json
import os
import socket
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from datetime import timedelta
from typing import Any

import torch
import torch.distributed as dist

from rankmixer_dist.command_line import ranks_have_met
from rankmixer_dist.environment.kernels import require_kernels, unused_gpus
from rankmixer_dist.errors import UserError
from rankmixer_dist.parallel.meeting import judged, meeting_store, stay_on_loopback
from rankmixer_dist.parallel.standing import Standing, ranks_of_launcher, require_together, settled, standing

_MEET_S = 600.0


@dataclass(frozen=True)
class Topology:
    """A rank, the ranks it works with, its device, and the host of each rank."""

    rank: int
    world_size: int
    local_rank: int
    local_world_size: int
    device: torch.device
    hosts: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        if not self.hosts:
            object.__setattr__(self, "hosts", (socket.gethostname(),) * self.world_size)

    @property
    def is_first(self) -> bool:
        """True on the one rank that speaks and writes for all."""
        return self.rank == 0

    def share_of(self, batch_size: int) -> int:
        """Rows a rank gets of a global batch.

        Raises:
            UserError: the ranks cannot share `batch_size` evenly.
        """
        share, rest = divmod(batch_size, self.world_size)
        if rest:
            below, above = share * self.world_size, (share + 1) * self.world_size
            usable = f"{below} or {above}" if below else f"{above}"
            raise UserError(
                f"batch size {batch_size} cannot be shared evenly by {self.world_size} ranks; use {usable}, say"
            )
        return share


@contextmanager
def process_group(*, meet_s: float = _MEET_S, timeout_s: float = _MEET_S) -> Iterator[Topology]:
    """Joins the default process group for the length of a `with` block; a single process gets a group of its own.

    NCCL carries CUDA tensors and gloo everything else. The block ends with a barrier, so that no rank tears down a
    connection that another still reads; when it ends with an error, the launcher takes the other ranks down.

    Args:
        meet_s: how long ranks wait for each other to come.
        timeout_s: how long an exchange may take, of this group and of all that are made within the block.

    Raises:
        UserError: the environment does not say where the ranks meet, speaks of ranks that nobody starts, or of other
            devices than there are; or the ranks have devices that do not go together.
    """
    env = os.environ
    env.update(ranks_of_launcher(env))
    mine = standing(env, gpus_seen())
    rank, world_size = mine.rank, mine.world_size
    for key in ("MASTER_ADDR", "MASTER_PORT"):
        if world_size > 1 and key not in env:
            raise UserError(
                f"there are {world_size} ranks, but {key} is not set: where rank 0 listens; start with "
                "launch/torchrun.py or deepspeed, or set MASTER_ADDR and MASTER_PORT"
            )
    device, backend = torch.device("cpu"), "gloo"
    if mine.device is not None:
        device, backend = torch.device("cuda", mine.device), "cpu:gloo,cuda:nccl"
        require_kernels()
        torch.cuda.set_device(device)
        mine = replace(mine, gpu=_identity(device))
    elif mine.local_rank == 0 and (note := unused_gpus()):
        print(f"note: {note}", file=sys.stderr, flush=True)
    mine = replace(mine, host=socket.gethostname())
    env.setdefault("LOCAL_RANK", "0")  # DeepSpeed insists on it
    if world_size == 1:
        stay_on_loopback()
        store: dist.Store = dist.HashStore()
    else:
        store = meeting_store(rank, world_size, mine.local_world_size or world_size, meet_s)
    hosts, ranks_of_host = _introduced(store, mine)
    timeout = timedelta(seconds=timeout_s)
    with _timeout_of_all_groups(timeout):
        dist.init_process_group(backend, store=store, rank=rank, world_size=world_size, timeout=timeout)
        try:
            ranks_have_met()
            yield Topology(rank, world_size, mine.local_rank, ranks_of_host[rank], device, hosts)
            dist.barrier()
        except BaseException:
            # With other ranks there may be exchanges under way that they never come to, and gloo would wait for them.
            if world_size == 1:
                _leave()
            raise
        _leave()


def _leave() -> None:
    """Ends the default group; DeepSpeed, where it was used, forgets it too and takes the next one that is joined."""
    deepspeed = sys.modules.get("deepspeed")
    if deepspeed is not None and deepspeed.comm.is_initialized():
        deepspeed.comm.destroy_process_group()
    else:
        dist.destroy_process_group()


def gpus_seen() -> int:
    """GPUs that torch can use in this process."""
    return torch.cuda.device_count() if torch.cuda.is_available() else 0


def _identity(device: torch.device) -> str:
    """What tells a GPU from all others, under whatever index a process sees it."""
    return str(torch.cuda.get_device_properties(device).uuid)


def _introduced(store: dist.Store, mine: Standing) -> tuple[tuple[str, ...], tuple[int, ...]]:
    """Each rank's host, and how many ranks that has: before the first group, which would hang where they do not go
    together. Every rank reads the answer from one store, so it says no more than that.

    Raises:
        UserError: as `require_together` does, on all ranks.
    """

    def judge(told: list[str]) -> str:
        ranks = settled([Standing(**json.loads(one)) for one in told])
        require_together(ranks)
        return json.dumps([[one.host for one in ranks], [one.local_world_size for one in ranks]])

    try:
        hosts, sizes = json.loads(judged(store, mine.rank, mine.world_size, json.dumps(asdict(mine)), judge))
    except UserError:
        ranks_have_met()
        raise
    return tuple(hosts), tuple(sizes)


@contextmanager
def _timeout_of_all_groups(timeout: timedelta) -> Iterator[None]:
    """Gives it to all groups made within the block that name none, as DeepSpeed's and TorchRec's: torch has 10 minutes
    for NCCL and 30 for others, and asks nobody."""
    c10d: Any = dist.distributed_c10d
    before = c10d.default_pg_timeout, c10d.default_pg_nccl_timeout
    c10d.default_pg_timeout = c10d.default_pg_nccl_timeout = timeout
    try:
        yield
    finally:
        c10d.default_pg_timeout, c10d.default_pg_nccl_timeout = before


def gather_objects(value: Any, group: dist.ProcessGroup | None = None) -> list[Any] | None:
    """`value` of every rank in rank order, on rank 0; None elsewhere."""
    gathered: list[Any] | None = [None] * dist.get_world_size() if dist.get_rank() == 0 else None
    dist.gather_object(value, gathered, group=group)
    return gathered


def broadcast_object(value: Any) -> Any:
    """Rank 0's `value`, on every rank."""
    holder = [value]
    dist.broadcast_object_list(holder)
    return holder[0]


def sum_over_ranks(values: torch.Tensor) -> torch.Tensor:
    """Elementwise sum of a small tensor over the ranks."""
    total = values.detach().clone()
    dist.all_reduce(total)
    return total


def all_gather_values(values_F: torch.Tensor) -> torch.Tensor:
    """[F] small CPU tensors of every rank as [ranks, F], on every rank."""
    gathered = [torch.empty_like(values_F) for _ in range(dist.get_world_size())]
    dist.all_gather(gathered, values_F)
    return torch.stack(gathered)


def any_over_ranks(flag: torch.Tensor) -> bool:
    """Whether a boolean scalar is true on any rank."""
    value = flag.to(torch.int32)
    dist.all_reduce(value, op=dist.ReduceOp.MAX)
    return bool(value.item())


def barrier() -> None:
    """Waits until every rank is here."""
    dist.barrier()


def new_gloo_group(at_least_s: float = 0.0) -> dist.ProcessGroup:
    """A group of all ranks for CPU tensors, whose exchanges do not mix with other groups'; all ranks call it.

    Args:
        at_least_s: how long its exchanges may take, where the default group's may not.
    """
    timeout = max(dist.distributed_c10d.default_pg_timeout, timedelta(seconds=at_least_s))
    return dist.new_group(backend="gloo", timeout=timeout)


def all_gather_objects(value: Any, group: dist.ProcessGroup | None = None) -> list[Any]:
    """`value` of every rank in rank order, on every rank."""
    gathered: list[Any] = [None] * dist.get_world_size(group)
    dist.all_gather_object(gathered, value, group=group)
    return gathered


@contextmanager
def failing_together(group: dist.ProcessGroup | None = None) -> Iterator[None]:
    """When the block ends in a `UserError` or an `OSError` on any rank, all raise the first, so that none waits for it.

    Raises:
        UserError: with the message of the first rank that failed.
    """
    mine: str | None = None
    try:
        yield
    except (UserError, OSError) as error:
        mine = str(error)
    for message in all_gather_objects(mine, group):
        if message is not None:
            raise UserError(message)
