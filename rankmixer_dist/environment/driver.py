"""What the CUDA build of fbgemm, and with it torchrec, needs of the NVIDIA driver to load at all."""

from __future__ import annotations

import ctypes
from pathlib import Path

from rankmixer_dist.environment.check import Check
from rankmixer_dist.environment.machine import nvidia_driver
from rankmixer_dist.environment.pins import installed

FBGEMM_FOR_CUDA = "fbgemm-gpu"
LIBRARY = "libnvidia-ml.so.1"
"""All other libraries come with the wheels."""
_MARKS = (Path("/proc/driver/nvidia/version"), Path("/dev/nvidiactl"))


def has_driver() -> bool:
    """Whether an NVIDIA driver runs here, even one that a container sees nothing but the devices of."""
    return any(path.exists() for path in _MARKS) or nvidia_driver() is not None


def lacks_library() -> bool:
    """Whether the installed fbgemm is the CUDA build, and the driver's library is not here."""
    if not installed(FBGEMM_FOR_CUDA):
        return False
    try:
        ctypes.CDLL(LIBRARY)
    except OSError:
        return True
    return False


def without_library(name: str, found: str) -> Check:
    """The line of a check that cannot be made without the library: a warning where there is no driver either."""
    found = f"{found}, not tried: the driver's {LIBRARY} is not here"
    if not has_driver():
        return Check(name, found, "warn", "fine on a build machine; where it runs an NVIDIA driver is needed")
    mend = "a driver is here without it: install the driver's libraries (Debian: libnvidia-ml1), or give the container "
    return Check(name, found, "bad", mend + "NVIDIA_DRIVER_CAPABILITIES=compute,utility")
