"""Peak rates of GPUs, which a measured rate is compared with; `cost.gpu` has their memory."""

import re
from dataclasses import dataclass
from typing import Literal

Rate = Literal["bf16", "tf32", "fp32"]
"""How a product is computed: bf16 and tf32 on tensor cores, fp32 without them."""


@dataclass(frozen=True)
class Peaks:
    """A row of the table: dense peaks (without 2:4 sparsity) in TFLOP/s from the named data sheet.

    `pattern`: found as whole words in the device's name; an SXM board has no suffix there.
    """

    pattern: str
    bf16: float
    tf32: float
    fp32: float
    sheet: str


_PEAKS = (
    # Those that the wheels of torch and FBGEMM have code for: sm_80 (which sm_86 and sm_89 run too), sm_90, sm_100. The
    # first pattern that is found counts, so narrower ones stand first. Sheets give Hopper's and Blackwell's tensor
    # cores with sparsity, which is twice these figures.
    Peaks(r"GB200", 2500, 1250, 80, "NVIDIA GB200 NVL72, per GPU"),
    Peaks(r"B200", 2250, 1100, 75, "NVIDIA HGX B200, per GPU"),
    Peaks(r"GH200", 989.4, 494.7, 66.9, "NVIDIA GH200 Grace Hopper Superchip"),
    Peaks(r"H200 NVL", 835.5, 417.5, 60, "NVIDIA H200 Tensor Core GPU"),
    Peaks(r"H200", 989.4, 494.7, 66.9, "NVIDIA H200 Tensor Core GPU"),
    Peaks(r"H[18]00 PCIe", 756, 378, 51.2, "NVIDIA H100 (H800) Tensor Core GPU, PCIe"),
    Peaks(r"H[18]00 NVL", 835.5, 417.5, 60, "NVIDIA H100 Tensor Core GPU, NVL, per GPU"),
    Peaks(r"H[18]00", 989.4, 494.7, 66.9, "NVIDIA H100 (H800) Tensor Core GPU, SXM5"),
    Peaks(r"H20", 148, 74, 44, "NVIDIA H20"),
    Peaks(r"A[18]00", 312, 156, 19.5, "NVIDIA A100 (A800) Tensor Core GPU, SXM4 and PCIe alike"),
    Peaks(r"A40", 149.7, 74.8, 37.4, "NVIDIA A40"),
    Peaks(r"A30", 165, 82, 10.3, "NVIDIA A30 Tensor Core GPU"),
    Peaks(r"A10G", 70, 35, 31.5, "NVIDIA A10G, as Amazon EC2 G5 tells it"),
    Peaks(r"A10", 125, 62.5, 31.2, "NVIDIA A10 Tensor Core GPU"),
    Peaks(r"L40S", 362, 183, 91.6, "NVIDIA L40S"),
    Peaks(r"L40", 181, 90.5, 90.5, "NVIDIA L40"),
    Peaks(r"L4", 121, 60, 30.3, "NVIDIA L4 Tensor Core GPU"),
)


def peak_flops(device_name: str, rate: Rate) -> float | None:
    """Dense peak of a GPU in FLOP/s.

    Args:
        device_name: as the driver reports it, e.g. "NVIDIA H100 80GB HBM3".
        rate: what the products are computed in.

    Returns:
        None for a device that the table does not know.

    Raises:
        ValueError: unknown rate.
    """
    if rate not in ("bf16", "tf32", "fp32"):
        raise ValueError(f"rate {rate!r} is unknown; use bf16, tf32 or fp32")
    # Whole words, so that A10 is not found in A100.
    peaks = next((gpu for gpu in _PEAKS if re.search(rf"\b(?:{gpu.pattern})\b", device_name)), None)
    return None if peaks is None else {"bf16": peaks.bf16, "tf32": peaks.tf32, "fp32": peaks.fp32}[rate] * 1e12
