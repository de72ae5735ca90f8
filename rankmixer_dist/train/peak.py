"""The rate that MFU is a share of: a device's peak, from a table for GPUs, measured for CPUs."""

import time

import torch

from rankmixer_dist import cost

_SIDE = 1024
_SECONDS = 0.3


class Peak:
    """FLOP/s that one rank's device can do in `dtype`.

    A CPU has no sheet figure for the share of cores that a rank gets, so it is measured; all ranks should be made at
    the same time, as they train at the same time. What is measured while others use the machine is too low: a rate
    that passes it shows that, and it is measured again.
    """

    def __init__(self, device: torch.device, dtype: torch.dtype) -> None:
        self._dtype, self._measured = dtype, device.type != "cuda"
        if self._measured:
            self._flops: float | None = measured_peak(dtype)
        else:
            name = torch.cuda.get_device_name(device)
            self._flops = cost.peak_flops(name, str(dtype).removeprefix("torch."))

    def share(self, rate: float) -> float | None:
        """Share of the peak that `rate`, FLOP/s of one rank, is; None for a GPU that the table does not know."""
        if self._flops is None:
            return None
        if self._measured and rate > self._flops:
            # What was done can be done, whatever a second measurement beside other work says.
            self._flops = max(measured_peak(self._dtype), rate)
        return rate / self._flops


def measured_peak(dtype: torch.dtype) -> float:
    """FLOP/s of a square GEMM on this CPU, which is timed for 0.3 s and of which the best repetition counts."""
    left = torch.randn(_SIDE, _SIDE, dtype=dtype)
    right = torch.randn(_SIDE, _SIDE, dtype=dtype)
    best, end = float("inf"), time.perf_counter() + _SECONDS
    while time.perf_counter() < end:
        start = time.perf_counter()
        torch.mm(left, right)
        best = min(best, time.perf_counter() - start)
    return 2 * _SIDE**3 / best
