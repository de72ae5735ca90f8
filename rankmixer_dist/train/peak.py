"""The rate that MFU is a share of: a device's peak, from a table for GPUs, measured for CPUs."""

import time

import torch

from rankmixer_dist import cost

_SIDE = 1024
_SECONDS = 0.3


def peak_flops(device: torch.device, dtype: torch.dtype) -> float | None:
    """FLOP/s that one rank's device can do in `dtype`; None for a GPU that the table does not know.

    A CPU has no sheet figure for the share of cores that a rank gets, so a square GEMM is timed for 0.3 s and the
    best repetition counts; all ranks should measure at the same time, as they train at the same time.
    """
    if device.type == "cuda":
        return cost.peak_flops(torch.cuda.get_device_name(device), str(dtype).removeprefix("torch."))
    left = torch.randn(_SIDE, _SIDE, dtype=dtype)
    right = torch.randn(_SIDE, _SIDE, dtype=dtype)
    best, end = float("inf"), time.perf_counter() + _SECONDS
    while time.perf_counter() < end:
        start = time.perf_counter()
        torch.mm(left, right)
        best = min(best, time.perf_counter() - start)
    return 2 * _SIDE**3 / best
