"""Where this process stands among the ranks, under python, torchrun, deepspeed or srun alike."""

import os
import time
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from typing import Any

import torch
import torch.distributed as dist

from rankmixer_dist.errors import UserError


@dataclass(frozen=True)
class Topology:
    """A rank, the ranks it works with, and its device."""

    rank: int
    world_size: int
    local_rank: int
    local_world_size: int
    device: torch.device

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
def process_group(*, timeout_s: float = 600.0) -> Iterator[Topology]:
    """Joins the default process group for the length of a `with` block; a single process gets a group of its own.

    NCCL carries CUDA tensors and gloo everything else. The block ends with a barrier, so that no rank tears down a
    connection that another still reads; when it ends with an error, the launcher takes the other ranks down.
    """
    env = os.environ
    if "SLURM_PROCID" in env and "RANK" not in env:  # srun without torchrun in between
        env["RANK"], env["WORLD_SIZE"], env["LOCAL_RANK"] = (
            env[key] for key in ("SLURM_PROCID", "SLURM_NTASKS", "SLURM_LOCALID")
        )
        env.setdefault("LOCAL_WORLD_SIZE", env.get("SLURM_NTASKS_PER_NODE", "1"))
    rank, world_size = int(env.get("RANK", 0)), int(env.get("WORLD_SIZE", 1))
    local_rank = int(env.get("LOCAL_RANK", 0))
    local_world_size = int(env.get("LOCAL_WORLD_SIZE", env.get("LOCAL_SIZE", world_size)))
    if world_size > 1 and "MASTER_ADDR" not in env:
        raise UserError("WORLD_SIZE is set but MASTER_ADDR is not; start with torchrun, deepspeed or set both")

    if torch.cuda.is_available():
        device, backend = torch.device("cuda", local_rank), "cpu:gloo,cuda:nccl"
        torch.cuda.set_device(device)
    else:
        device, backend = torch.device("cpu"), "gloo"
    kwargs: dict[str, Any] = {"timeout": timedelta(seconds=timeout_s)}
    env.setdefault("LOCAL_RANK", "0")  # DeepSpeed insists on it
    if "RANK" not in env:
        kwargs.update(store=dist.HashStore(), rank=0, world_size=1)
    elif env.get("TORCHELASTIC_USE_AGENT_STORE") == "True":
        kwargs.update(store=_store_of_this_start(rank, world_size, timeout_s), rank=rank, world_size=world_size)
    dist.init_process_group(backend, **kwargs)
    try:
        yield Topology(rank, world_size, local_rank, local_world_size, device)
        dist.barrier()
    except BaseException:
        # With other ranks there may be exchanges under way that they never come to, and gloo would wait for them.
        if world_size == 1:
            dist.destroy_process_group()
        raise
    dist.destroy_process_group()


def _store_of_this_start(rank: int, world_size: int, timeout_s: float) -> dist.Store:
    """A part of torchrun's store in which no rank of an earlier start has written.

    torchrun 2.13 keeps one store for all starts of its ranks, who would find the addresses of the dead in it. Nor can
    its environment tell the starts apart: each node counts its own restarts. So rank 0 numbers them, and the others
    believe a number once rank 0 has answered to a word that they have just made up.
    """
    store = dist.PrefixStore("starts/", next(dist.rendezvous("env://", timeout=timedelta(seconds=timeout_s)))[0])
    if rank == 0:
        start = store.add("count", 1)
        store.set("newest", str(start))
        for other in range(1, world_size):
            word = store.get(f"{start}/{other}").decode()
            store.set(f"{start}/{word}", "")
        return dist.PrefixStore(f"{start}/group/", store)
    word, give_up = uuid.uuid4().hex, time.monotonic() + timeout_s
    while time.monotonic() < give_up:
        start = int(store.get("newest"))
        store.set(f"{start}/{rank}", word)
        if store.check([f"{start}/{word}"]):
            return dist.PrefixStore(f"{start}/group/", store)
        time.sleep(0.02)
    raise TimeoutError(f"rank 0 did not come within {timeout_s:g} s")


def gather_objects(value: Any) -> list[Any] | None:
    """`value` of every rank in rank order, on rank 0; None elsewhere."""
    gathered: list[Any] | None = [None] * dist.get_world_size() if dist.get_rank() == 0 else None
    dist.gather_object(value, gathered)
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


def any_over_ranks(flag: torch.Tensor) -> bool:
    """Whether a boolean scalar is true on any rank."""
    value = flag.to(torch.int32)
    dist.all_reduce(value, op=dist.ReduceOp.MAX)
    return bool(value.item())


def barrier() -> None:
    """Waits until every rank is here."""
    dist.barrier()


def new_gloo_group() -> dist.ProcessGroup:
    """A group of all ranks for CPU tensors, whose exchanges do not mix with other groups'; all ranks call it."""
    return dist.new_group(backend="gloo")


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
