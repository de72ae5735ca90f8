"""Peak rates of GPUs, which a measured rate is compared with."""

from typing import Literal, get_args

from rankmixer_dist.cost.gpu import gpu_of_device

Rate = Literal["bf16", "tf32", "fp32"]
"""How a product is computed: bf16 and tf32 on tensor cores, fp32 without them."""


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
    if rate not in get_args(Rate):
        raise ValueError(f"rate {rate!r} is unknown; use bf16, tf32 or fp32")
    gpu = gpu_of_device(device_name)
    return None if gpu is None else {"bf16": gpu.bf16, "tf32": gpu.tf32, "fp32": gpu.fp32}[rate]
