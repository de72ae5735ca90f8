"""How much memory tables may take on a rank, and on this machine."""

import torch

from rankmixer_dist.config import RunConfig
from rankmixer_dist.environment.machine import total_memory

_SHARE = 0.6
"""Of a device's memory; the rest is for the dense model, activations and batches."""
_COPIED_SHARE = 0.4
"""Of a host's memory where each table also has a copy there, which a checkpoint is written from."""


def rank_room(config: RunConfig, device: torch.device, local_ranks: int, *, saves: bool) -> int:
    """Bytes that the tables of one rank may take.

    Args:
        local_ranks: ranks that share the host.
        saves: the rank writes checkpoints. With `checkpoint.asynchronous` each needs a copy of the tables in host
            memory, which stays.
    """
    host = total_memory() / local_ranks
    copies = saves and config.checkpoint.asynchronous
    if device.type != "cuda":
        return int((_COPIED_SHARE if copies else _SHARE) * host)
    own = _SHARE * torch.cuda.get_device_properties(device).total_memory
    return int(min(own, _SHARE * host) if copies else own)


def machine_room(config: RunConfig) -> tuple[int, str]:
    """Bytes that the tables of a training run may take on this machine, and the machine in words."""
    gpus = torch.cuda.device_count() if torch.cuda.is_available() else 0
    if gpus:
        device = torch.device("cuda", 0)
        return gpus * rank_room(config, device, gpus, saves=True), f"this machine's {gpus} GPU{'s' * (gpus > 1)}"
    return rank_room(config, torch.device("cpu"), 1, saves=True), "this machine"
