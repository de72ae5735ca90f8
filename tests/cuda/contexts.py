"""On which GPUs a process has a context: a tensor put on another rank's GPU makes one there, which takes its memory."""

import ctypes
from typing import Any


def active_contexts(driver: Any, devices: int) -> list[int]:
    """Numbers of the devices on which this process has its primary context.

    Args:
        driver: libcuda.so.1, by ctypes.
        devices: how many the process sees.
    """
    found = []
    for device in range(devices):
        flags, active = ctypes.c_uint(), ctypes.c_int()
        handle = ctypes.c_int()
        assert driver.cuDeviceGet(ctypes.byref(handle), device) == 0
        assert driver.cuDevicePrimaryCtxGetState(handle, ctypes.byref(flags), ctypes.byref(active)) == 0
        if active.value:
            found.append(device)
    return found
