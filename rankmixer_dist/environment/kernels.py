"""Whether the operators of the tables have kernels for GPUs: a build of fbgemm for the CPU loads beside any torch."""

from __future__ import annotations

import os
from pathlib import Path

from rankmixer_dist.environment.check import INSTALL_FOR_GPUS, Check, guarded
from rankmixer_dist.environment.driver import lacks_library, without_library
from rankmixer_dist.environment.machine import nvidia_driver
from rankmixer_dist.errors import UserError

_DEVICES = Path("/dev")
_HIDDEN = ("", "-1", "NoDevFiles")
"""What CUDA_VISIBLE_DEVICES is where somebody wants no GPU, or SLURM gave none."""
_OPERATOR = "fbgemm::asynchronous_complete_cumsum"
"""Of those that every lookup calls: a build for GPUs has kernels for them and for the CPU."""


def has_kernels() -> bool:
    """Whether the installed fbgemm can look up on a GPU: torch's table of kernels says so, which needs no GPU.

    The name of the installed distribution would not say it: fbgemm may have been built from source, or one build
    installed over another.
    """
    import fbgemm_gpu  # noqa: F401  loads the operators
    import torch

    return torch._C._dispatch_has_kernel_for_dispatch_key(_OPERATOR, "CUDA")


def require_kernels() -> None:
    """Makes sure that tables work on the GPUs that torch sees.

    Raises:
        UserError: they do not.
    """
    if not has_kernels():
        raise UserError(
            f"torch sees GPUs, and this build of fbgemm has no kernels for them; run {INSTALL_FOR_GPUS}, or hide the "
            "GPUs with CUDA_VISIBLE_DEVICES= (nothing after it) to work on the CPU"
        )


def unused_gpus() -> str | None:
    """What a person should know where torch sees no GPU, but the driver has some that nobody has hidden; else None."""
    if os.environ.get("RANKMIXER_DEVICE") == "cpu" or "DS_ACCELERATOR" in os.environ:
        return None
    if os.environ.get("CUDA_VISIBLE_DEVICES") in _HIDDEN or not [*_DEVICES.glob("nvidia[0-9]*")]:
        return None
    import torch

    if nvidia_driver() is None:  # a container or a job that may not use them
        return None
    why = "torch is a CPU build" if torch.version.cuda is None else "torch cannot use them"
    return f"this machine has GPUs, but {why}: works on the CPU; see launch/doctor.py"


@guarded("fbgemm kernels")
def kernels() -> Check:
    """Where torch sees GPUs, fbgemm has kernels for them."""
    import torch

    name = "fbgemm kernels"
    if lacks_library():
        return without_library(name, "for GPUs, as the CUDA build has them")
    has = has_kernels()
    if has or not torch.cuda.is_available():
        return Check(name, "for GPUs and the CPU" if has else "for the CPU, and no GPU is seen")
    found = f"none for the GPUs that torch sees ({torch.cuda.device_count()})"
    if os.environ.get("RANKMIXER_DEVICE") == "cpu":
        return Check(name, found, "warn", "hide the GPUs from verbs: CUDA_VISIBLE_DEVICES= (nothing after it)")
    return Check(name, found, "bad", f"run: {INSTALL_FOR_GPUS}")
