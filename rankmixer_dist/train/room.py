"""How much memory tables may take on a rank of this or another machine, and what the planner is told of the ranks."""

import dataclasses
from dataclasses import dataclass

import torch

from rankmixer_dist.config import RunConfig
from rankmixer_dist.cost.gpu import Gpu, gpu_of_device, nearest_gpu
from rankmixer_dist.environment.machine import total_memory

_SHARE = 0.6
"""Of a host's memory; the rest is for the dense model, activations and batches."""
_COPIED_SHARE = 0.4
"""Of a host's memory where each table also has a copy there, which a checkpoint is written from."""
_GPU_SHARE = 0.9
"""Of a GPU's memory, the dense part included; the rest is CUDA's and NCCL's own, batches, and the allocator's gaps."""
_GIB = 2**30


@dataclass(frozen=True)
class Host:
    """One of a run's hosts, which are alike.

    gpu: each rank's, None for ranks on CPU cores.
    ranks: on the host.
    memory_bytes: of the host; None where it is not known, and nothing is made to fit it.
    note: what had to be assumed, or nothing.
    """

    ranks: int
    memory_bytes: int | None
    gpu: Gpu | None = None
    note: str = ""

    @property
    def device(self) -> torch.device:
        """Of its first rank."""
        return torch.device("cpu") if self.gpu is None else torch.device("cuda", 0)


def host_here(device: torch.device, ranks: int) -> Host:
    """This host, with so many ranks on devices such as `device`."""
    if device.type != "cuda":
        return Host(ranks, total_memory())
    name, memory = torch.cuda.get_device_name(device), torch.cuda.get_device_properties(device).total_memory
    known = gpu_of_device(name)
    if known is not None:
        # The table's figure, which is the smaller one of a whole GPU: a plan made elsewhere is the same to the byte.
        gpu, note = dataclasses.replace(known, memory_bytes=min(memory, known.memory_bytes)), ""
    else:
        near = nearest_gpu(memory)
        gpu = dataclasses.replace(near, key=name, memory_bytes=memory)
        note = f"{name} is a GPU that is not known here: tables are placed as by the bandwidths of {near.key}"
    return Host(ranks, total_memory(), gpu, note)


def memory_for_tables(config: RunConfig, host: Host, *, saves: bool, dense_bytes: int) -> int:
    """Bytes that the tables of one rank may take; none or fewer where a GPU has no room for the dense part.

    Args:
        saves: the rank writes checkpoints. With `checkpoint.asynchronous` each needs a copy of the tables in host
            memory, which stays.
        dense_bytes: of the dense part on a GPU; on a CPU it is within the share that is left.
    """
    if config.sparse.memory_gib is not None:
        return int(config.sparse.memory_gib * _GIB)
    copies = saves and config.checkpoint.asynchronous
    of_host = None if host.memory_bytes is None else host.memory_bytes / host.ranks
    if host.gpu is None:
        assert of_host is not None
        return int((_COPIED_SHARE if copies else _SHARE) * of_host)
    own = _GPU_SHARE * host.gpu.memory_bytes - dense_bytes
    return int(min(own, _SHARE * of_host) if copies and of_host is not None else own)
