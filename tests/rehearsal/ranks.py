"""One process as a rank of many, without the others: torch's group "fake", whose collectives return at once."""

import os
from datetime import timedelta
from functools import partial
from typing import Any

import torch
import torch.distributed as dist
from torch.testing._internal.distributed.fake_pg import FakeStore

from tests.rehearsal import stand_in

HOST_RANKS = 8


def join(rank: int, world_size: int, device: str = stand_in.NAME) -> None:
    """Joins a default group of that many ranks, for the CPU and for `device`.

    What ranks tell each other as objects is what this rank says: it speaks to itself alone.
    """
    global _heard
    _heard = 0
    if rank == 0:
        _said.clear()
    env = {"RANK": rank, "LOCAL_RANK": rank % HOST_RANKS, "WORLD_SIZE": world_size}
    env["LOCAL_WORLD_SIZE"] = min(HOST_RANKS, world_size)
    os.environ.update({key: str(value) for key, value in env.items()})
    timeout = timedelta(seconds=60)
    backend = "cpu:fake" if device == "cpu" else f"cpu:fake,{device}:fake"
    dist.init_process_group(backend, store=FakeStore(), rank=rank, world_size=world_size, timeout=timeout)
    for name in ("all_gather_object", "gather_object", "broadcast_object_list"):
        for module in (dist, dist.distributed_c10d):
            setattr(module, name, globals()[f"_{name}"])


def _all_gather_object(gathered: list[Any], value: Any, group: Any = None) -> None:
    gathered[:] = [value] * len(gathered)


def _gather_object(value: Any, gathered: list[Any] | None = None, *args: Any, **kwargs: Any) -> None:
    if gathered is not None:
        gathered[:] = [value] * len(gathered)


_said: list[list[Any]] = []
_heard = 0


def _broadcast_object_list(values: list[Any], *args: Any, **kwargs: Any) -> None:
    """Rank 0 is remembered; another rank hears it, where it was this process before."""
    global _heard
    if dist.get_rank() == 0:
        _said.append([*values])
    elif _heard < len(_said):
        values[:] = _said[_heard]
        _heard += 1


def accelerate() -> None:
    """Makes the stand-in DeepSpeed's device."""
    os.environ["DS_ACCELERATOR"] = "cpu"
    from deepspeed.accelerator import set_accelerator
    from deepspeed.accelerator.cpu_accelerator import CPU_Accelerator

    class Accelerator(CPU_Accelerator):
        def device_name(self, device_index: int | None = None) -> str:
            return stand_in.NAME if device_index is None else f"{stand_in.NAME}:{device_index}"

        def current_device_name(self) -> str:
            return f"{stand_in.NAME}:0"

        def device(self, device_index: int | None = None) -> torch.device:
            return torch.device(stand_in.NAME, 0)

        def synchronize(self, device_index: int | None = None) -> None:
            stand_in.synchronized()

        # What DeepSpeed makes of a number, as flags and norms, lies on the device.
        ByteTensor = property(lambda self: partial(torch.tensor, dtype=torch.uint8, device=self.device()))
        FloatTensor = property(lambda self: partial(torch.tensor, dtype=torch.float32, device=self.device()))

        def available_memory(self, device_index: int | None = None) -> int:
            return 80 << 30

    set_accelerator(Accelerator())
