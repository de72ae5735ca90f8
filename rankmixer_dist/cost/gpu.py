"""GPUs by name: memory and bandwidths, by which tables are placed, and peaks, which a measured rate is compared with.

From NVIDIA's data sheets of each board, where 1 GB is 10^9 bytes. Two things differ from what the sheets print. Hopper
and Blackwell are given with 2:4 sparsity there, which is twice the dense rates here. Boards with GDDR6 have 1 GB less
here: error correction, which is on by default, takes a part of what the sheets tell.

The comment beside a board names the sheet, with its number and date where these are known, and the figures for which no
sheet was found. In November 2026 the figures were compared with public copies and quotations of these sheets.
"""

import re
from dataclasses import dataclass

_GB, _TERA = 10**9, 1e12


@dataclass(frozen=True)
class Gpu:
    """A board: `key` on a command line, bytes, bytes a second, and dense peaks in FLOP/s.

    `link_bandwidth` is what a GPU can send to the others of its host at once, one direction: half of what the sheets
    add up over both. It is NVLink where every GPU of a host has it, and PCIe where bridges join but two or four boards.
    `bf16` and `tf32` are on tensor cores, `fp32` without them.
    """

    key: str
    memory_bytes: int
    memory_bandwidth: float
    link_bandwidth: float
    bf16: float
    tf32: float
    fp32: float


# Those that the wheels of torch and FBGEMM have code for: sm_80 (which sm_86 and sm_89 run too), sm_90, sm_100. The
# first pattern found in the device's name as whole words counts, so the narrower ones stand first. An SXM board has no
# suffix in its name.
_GPUS: tuple[tuple[str, Gpu], ...] = tuple(
    (pattern, Gpu(key, memory * _GB, bandwidth * _GB, link * _GB, bf16 * _TERA, tf32 * _TERA, fp32 * _TERA))
    for pattern, key, (memory, bandwidth, link), (bf16, tf32, fp32) in (
        # Memory in GB, bandwidths in GB/s; peaks in TFLOP/s.
        (r"GB200", "gb200", (186, 8000, 900), (2500, 1250, 80)),  # Blackwell data sheet, of a GB200 NVL72
        (r"B200", "b200", (180, 7700, 900), (2250, 1100, 75)),  # Blackwell data sheet, of an HGX B200
        (r"GH200 144G", "gh200-144", (144, 4900, 450), (989.4, 494.7, 66.9)),  # none found; peaks of the H100
        (r"GH200", "gh200", (96, 4000, 450), (989.4, 494.7, 66.9)),  # its announcement alone; peaks of the H100
        # The data sheet of July 2024 gives the NVL the peaks of the SXM board; the product page gives these.
        (r"H200 NVL", "h200-nvl", (141, 4800, 64), (835.5, 417.5, 60)),  # 3367400, July 2024; product page
        (r"H200", "h200", (141, 4800, 450), (989.4, 494.7, 66.9)),  # 3367400, July 2024
        (r"H[18]00 PCIe", "h100-pcie", (80, 2000, 64), (756, 378, 51.2)),  # H100 data sheet; PB-11133-001, Nov. 2022
        (r"H[18]00 NVL", "h100-nvl", (94, 3900, 64), (835.5, 417.5, 60)),  # H100 data sheet; none found for fp32
        (r"H100", "h100", (80, 3350, 450), (989.4, 494.7, 66.9)),  # H100 data sheet; Hopper whitepaper
        (r"H800", "h800", (80, 3350, 200), (989.4, 494.7, 66.9)),  # none found; the press: H100 with less NVLink
        (r"H20", "h20", (96, 4000, 450), (148, 74, 44)),  # none found; the press of February 2024
        (r"A[18]00-PCI[eE]-40GB|A800 40GB Active", "a100-pcie-40", (40, 1555, 32), (312, 156, 19.5)),  # 1758950-r4
        (r"A[18]00(-PCI[eE]-80GB| 80GB PCIe)", "a100-pcie", (80, 1935, 32), (312, 156, 19.5)),  # 2188504, May 2022
        (r"A100-SXM4-40GB", "a100-40", (40, 1555, 300), (312, 156, 19.5)),  # 1758950-r4
        (r"A100", "a100", (80, 2039, 300), (312, 156, 19.5)),  # 2188504, May 2022
        (r"A800", "a800", (80, 2039, 200), (312, 156, 19.5)),  # none found; the press: A100 with less NVLink
        (r"A40", "a40", (47, 696, 32), (149.7, 74.8, 37.4)),  # A40 data sheet; PB-09976-001, January 2021
        (r"A30", "a30", (24, 933, 32), (165, 82, 10.3)),  # A30 data sheet; none found for tf32
        (r"A10G", "a10g", (23, 600, 32), (70, 35, 35)),  # A10G data sheet for AWS, 17 February 2022
        (r"A10", "a10", (23, 600, 32), (125, 62.5, 31.2)),  # A10 data sheet
        (r"L40S", "l40s", (47, 864, 32), (362, 183, 91.6)),  # 2841316, August 2023
        (r"L40", "l40", (47, 864, 32), (181, 90.5, 90.5)),  # 2436245, November 2022
        (r"L4", "l4", (23, 300, 32), (121, 60, 30.3)),  # L4 data sheet; Ada whitepaper 2.1
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
