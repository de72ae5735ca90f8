"""Where this process stands among the ranks, under python, torchrun, deepspeed or srun alike."""

import os
import socket
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from typing import Any

import torch
import torch.distributed as dist

from rankmixer_dist.command_line import ranks_have_met
from rankmixer_dist.errors import UserError
from rankmixer_dist.parallel.meeting import meeting_store, stay_on_loopback

_FIRST_STEP_OF_SLURM = 0xFFFF0000
"""Steps of SLURM's own, such as the batch script and the interactive shell, have the highest numbers of 32 bits."""


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


def ranks_of_srun(env: Mapping[str, str]) -> dict[str, str]:
    """RANK and its kin for a task of several that srun has started; empty for a process that stands alone.

    In the shell of an allocation, and in the script of a batch job, SLURM_PROCID is 0 and SLURM_NTASKS the number of
    tasks that an srun would start: nobody has started them. Only a step of srun has a number below SLURM's own.

    Raises:
        UserError: srun gave a terminal several tasks; only the first of them has a shell.
    """
    step, tasks = env.get("SLURM_STEP_ID", ""), env.get("SLURM_STEP_NUM_TASKS", env.get("SLURM_NTASKS", "1"))
    if not step.isdigit() or int(step) >= _FIRST_STEP_OF_SLURM or "SLURM_PROCID" not in env:
        planned = env.get("SLURM_NTASKS", "1")
        if planned.isdigit() and int(planned) > 1:
            told = f"SLURM planned {planned} tasks, but srun did not start this process: it works alone"
            print(f"note: {told}; start it with srun to use them all", file=sys.stderr, flush=True)
        return {}
    if tasks == "1":
        return {}
    if "SLURM_PTY_PORT" in env:
        raise UserError(
            f"srun --pty counts {tasks} tasks, of which one has this terminal; start it with srun without --pty, or "
            "open the terminal with srun --ntasks 1 --pty"
        )
    on_node = env.get("SLURM_NTASKS_PER_NODE", "1")
    ranks = {"RANK": env["SLURM_PROCID"], "WORLD_SIZE": tasks, "LOCAL_RANK": env.get("SLURM_LOCALID", "0")}
    return ranks | ({} if "LOCAL_WORLD_SIZE" in env else {"LOCAL_WORLD_SIZE": on_node})


def _number(env: Mapping[str, str], key: str, *, least: int = 0, otherwise: int = 0) -> int:
    """A variable of the launchers, `otherwise` where it is not set.

    Raises:
        UserError: it is no number, or below `least`.
    """
    text = env.get(key, str(otherwise))
    if not text.isdecimal() or int(text) < least:
        raise UserError(f"{key} is {text!r}, not a number from {least} on; launchers set it, else unset it")
    return int(text)


@contextmanager
def process_group(*, timeout_s: float = 600.0) -> Iterator[Topology]:
    """Joins the default process group for the length of a `with` block; a single process gets a group of its own.

    NCCL carries CUDA tensors and gloo everything else. The block ends with a barrier, so that no rank tears down a
    connection that another still reads; when it ends with an error, the launcher takes the other ranks down.

    Raises:
        UserError: the environment does not say where the ranks meet, or speaks of ranks that nobody starts.
    """
    env = os.environ
    if "RANK" not in env:  # srun without torchrun in between
        env.update(ranks_of_srun(env))
    world_size, rank = _number(env, "WORLD_SIZE", least=1, otherwise=1), _number(env, "RANK")
    local_rank, local_size = _number(env, "LOCAL_RANK"), _number(env, "LOCAL_SIZE", least=1, otherwise=world_size)
    local_world_size = _number(env, "LOCAL_WORLD_SIZE", least=1, otherwise=local_size)
    if rank >= world_size:
        raise UserError(f"RANK is {rank}, but WORLD_SIZE is {world_size}: ranks count from 0; launchers set both")
    for key in ("MASTER_ADDR", "MASTER_PORT"):
        if world_size > 1 and key not in env:
            raise UserError(
                f"there are {world_size} ranks, but {key} is not set: where rank 0 listens; start with "
                "launch/torchrun.py or deepspeed, or set MASTER_ADDR and MASTER_PORT"
            )
    if torch.cuda.is_available():
        device, backend = torch.device("cuda", local_rank), "cpu:gloo,cuda:nccl"
        torch.cuda.set_device(device)
    else:
        device, backend = torch.device("cpu"), "gloo"
    env.setdefault("LOCAL_RANK", "0")  # DeepSpeed insists on it
    if world_size == 1:
        stay_on_loopback()
        store: dist.Store = dist.HashStore()
    else:
        store = meeting_store(rank, world_size, local_world_size, timeout_s)
    timeout = timedelta(seconds=timeout_s)
    dist.init_process_group(backend, store=store, rank=rank, world_size=world_size, timeout=timeout)
    try:
        hosts = tuple(all_gather_objects(socket.gethostname()))
        ranks_have_met()
        yield Topology(rank, world_size, local_rank, local_world_size, device, hosts)
        dist.barrier()
    except BaseException:
        # With other ranks there may be exchanges under way that they never come to, and gloo would wait for them.
        if world_size == 1:
            dist.destroy_process_group()
        raise
    dist.destroy_process_group()


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
