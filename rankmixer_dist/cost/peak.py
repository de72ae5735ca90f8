"""Peak rates of GPUs, which a measured rate is compared with."""

import re

_PEAK_TFLOPS: tuple[tuple[str, dict[str, float]], ...] = (
    # Vendors' sheets, dense (without 2:4 sparsity), fp32 without tensor cores. The first pattern found in the device's
    # name counts, so the narrower ones stand first. An SXM board has no suffix in its name.
    (r"GB200", {"bfloat16": 2500, "float16": 2500, "tf32": 1250, "float32": 80}),
    (r"B200", {"bfloat16": 2250, "float16": 2250, "tf32": 1100, "float32": 75}),
    (r"H200 NVL", {"bfloat16": 835.5, "float16": 835.5, "tf32": 417.5, "float32": 60}),
    (r"GH200|H200", {"bfloat16": 989.4, "float16": 989.4, "tf32": 494.7, "float32": 66.9}),
    (r"H[18]00 PCIe", {"bfloat16": 756, "float16": 756, "tf32": 378, "float32": 51}),
    (r"H100 NVL", {"bfloat16": 835.5, "float16": 835.5, "tf32": 417.5, "float32": 60}),
    (r"H[18]00", {"bfloat16": 989.4, "float16": 989.4, "tf32": 494.7, "float32": 66.9}),
    (r"H20", {"bfloat16": 148, "float16": 148, "tf32": 74, "float32": 44}),
    (r"A[18]00", {"bfloat16": 312, "float16": 312, "tf32": 156, "float32": 19.5}),
    (r"A40", {"bfloat16": 149.7, "float16": 149.7, "tf32": 74.8, "float32": 37.4}),
    (r"A30", {"bfloat16": 165, "float16": 165, "tf32": 82, "float32": 10.3}),
    (r"A10G", {"bfloat16": 70, "float16": 70, "tf32": 35, "float32": 31.5}),
    (r"A10", {"bfloat16": 125, "float16": 125, "tf32": 62.5, "float32": 31.2}),
    (r"L40S", {"bfloat16": 362, "float16": 362, "tf32": 183, "float32": 91.6}),
    (r"L40", {"bfloat16": 181, "float16": 181, "tf32": 90.5, "float32": 90.5}),
    (r"L4", {"bfloat16": 121, "float16": 121, "tf32": 60, "float32": 30.3}),
    (r"V100-SXM\d", {"float16": 125, "float32": 15.7}),
    (r"V100", {"float16": 112, "float32": 14}),
    (r"T4", {"float16": 65, "float32": 8.1}),
)

_DTYPES = {"bf16": "bfloat16", "fp16": "float16", "fp32": "float32"}


def peak_flops(device_name: str, dtype: str) -> float | None:
    """Dense peak of a GPU in FLOP/s.

    Args:
        device_name: as the driver reports it, e.g. "NVIDIA H100 80GB HBM3".
        dtype: "bfloat16", "float16", "tf32" or "float32", or "bf16", "fp16", "fp32".

    Returns:
        None for a device that the table does not know, or a dtype that its matrix units lack.

    Raises:
        ValueError: unknown dtype.
    """
    dtype = _DTYPES.get(dtype, dtype)
    if dtype not in (*_DTYPES.values(), "tf32"):
        raise ValueError(f"dtype {dtype!r} is unknown; use bfloat16, float16, tf32 or float32")
    for pattern, rates in _PEAK_TFLOPS:
        # Whole words, so that A10 is not found in A100.
        if re.search(rf"\b(?:{pattern})\b", device_name):
            return rates[dtype] * 1e12 if dtype in rates else None
    return None
