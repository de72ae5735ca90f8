"""The rate that MFU is a share of: a device's peak, from a table for the GPUs in it, measured for all others."""

import time

import torch

from rankmixer_dist.cost.peak import Rate, peak_flops

_SIDE, _SIDE_ON_GPU = 1024, 8192
_SECONDS = 0.3


class Peak:
    """FLOP/s that one rank's device can do in `dtype`, fp32 on tensor cores where torch is told to use them (TF32).

    A CPU has no sheet figure for the share of cores that a rank gets, so it is measured; all ranks should be made at
    the same time, as they train at the same time. A GPU that the table does not know is measured too. What is measured
    while others use the machine is too low: a rate that passes it shows that, and it is measured again.
    """

    def __init__(self, device: torch.device, dtype: torch.dtype) -> None:
        self._device, self._dtype = device, dtype
        known = None
        if device.type == "cuda":
            known = peak_flops(torch.cuda.get_device_name(device), rate_of(dtype))
        self._measured = known is None
        self._flops = measured_peak(device, dtype) if known is None else known

    def share(self, rate: float) -> float:
        """Share of the peak that `rate`, FLOP/s of one rank, is."""
        if self._measured and rate > self._flops:
            # What was done can be done, whatever a second measurement beside other work says.
            self._flops = max(measured_peak(self._device, self._dtype), rate)
        return rate / self._flops


def rate_of(dtype: torch.dtype) -> Rate:
    """What a GPU computes products of this dtype in, bf16 or fp32, by torch's setting now."""
    if dtype == torch.bfloat16:
        return "bf16"
    return "tf32" if torch.backends.cuda.matmul.allow_tf32 else "fp32"


def measured_peak(device: torch.device, dtype: torch.dtype) -> float:
    """FLOP/s of a square GEMM on this device, which is timed for 0.3 s and of which the best repetition counts."""
    on_gpu = device.type == "cuda"
    side = _SIDE_ON_GPU if on_gpu else _SIDE
    left = torch.randn(side, side, dtype=dtype, device=device)
    right = torch.randn(side, side, dtype=dtype, device=device)
    if on_gpu:  # the first product on a GPU loads its kernel
        torch.mm(left, right)
        torch.cuda.synchronize(device)
    best, end = float("inf"), time.perf_counter() + _SECONDS
    while time.perf_counter() < end:
        start = time.perf_counter()
        torch.mm(left, right)
        if on_gpu:
            torch.cuda.synchronize(device)
        best = min(best, time.perf_counter() - start)
    return 2 * side**3 / best
