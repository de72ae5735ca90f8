"""Memory and bandwidths of GPUs by name, which the placement of tables is estimated with.

From NVIDIA's data sheets of each board, where 1 GB is 10^9 bytes. `link` is what a GPU can send to the others of its
host at once, one direction: half of what the sheets add up over both. It is NVLink where every GPU of a host has it,
and PCIe where bridges join but two or four boards.
"""

import re
from dataclasses import dataclass

_GB = 10**9


@dataclass(frozen=True)
class Gpu:
    """A board: `key` on a command line, `memory_bytes`, and bytes a second from its memory and to its neighbours."""

    key: str
    memory_bytes: int
    memory_bandwidth: float
    link_bandwidth: float


# The first pattern found in the device's name as whole words counts, so the narrower ones stand first.
_GPUS: tuple[tuple[str, Gpu], ...] = tuple(
    (pattern, Gpu(key, memory * _GB, bandwidth * _GB, link * _GB))
    for pattern, key, memory, bandwidth, link in (
        (r"GB200", "gb200", 186, 8000, 900),
        (r"B200", "b200", 180, 7700, 900),
        (r"GH200", "gh200", 96, 4000, 450),
        (r"H200 NVL", "h200-nvl", 141, 4800, 64),
        (r"H200", "h200", 141, 4800, 450),
        (r"H[18]00 PCIe", "h100-pcie", 80, 2000, 64),
        (r"H100 NVL", "h100-nvl", 94, 3900, 64),
        (r"H100", "h100", 80, 3350, 450),
        (r"H800", "h800", 80, 3350, 200),
        (r"H20", "h20", 96, 4000, 450),
        (r"A[18]00-PCI[eE]-40GB", "a100-pcie-40", 40, 1555, 32),
        (r"A[18]00(-PCI[eE]-80GB| 80GB PCIe)", "a100-pcie", 80, 1935, 32),
        (r"A100-SXM4-40GB", "a100-40", 40, 1555, 300),
        (r"A100", "a100", 80, 2039, 300),
        (r"A800", "a800", 80, 2039, 200),
        (r"A40", "a40", 48, 696, 32),
        (r"A30", "a30", 24, 933, 32),
        (r"A10|A10G", "a10", 24, 600, 32),
        (r"L40S|L40", "l40s", 48, 864, 32),
        (r"L4", "l4", 24, 300, 32),
    )
)

GPU_KEYS: tuple[str, ...] = tuple(gpu.key for _, gpu in _GPUS)
"""What `gpu_of_key` knows."""


def gpu_of_key(key: str) -> Gpu | None:
    """The board of a key such as `h100`, in any case; None for one that the table does not have."""
    return next((gpu for _, gpu in _GPUS if gpu.key == key.lower()), None)


def gpu_of_device(device_name: str) -> Gpu | None:
    """The board of a device's name, as the driver reports it, e.g. "NVIDIA H100 80GB HBM3"; None for one not known."""
    return next((gpu for pattern, gpu in _GPUS if re.search(rf"\b(?:{pattern})\b", device_name)), None)


def nearest_gpu(memory_bytes: int) -> Gpu:
    """The board whose rates stand for those of an unknown one: of the largest not above its memory, the slowest."""
    boards = [gpu for _, gpu in _GPUS]
    limit = max(memory_bytes, min(gpu.memory_bytes for gpu in boards))
    below = [gpu for gpu in boards if gpu.memory_bytes <= limit]
    return max(below, key=lambda gpu: (gpu.memory_bytes, -gpu.memory_bandwidth, -gpu.link_bandwidth))
