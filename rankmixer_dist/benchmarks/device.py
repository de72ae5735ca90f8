"""What a benchmark measures on: the first GPU if there is one, and its name."""

import os
import platform
from pathlib import Path

import torch


def measured_device() -> torch.device:
    """The first GPU, made the current one, or the CPU."""
    if not torch.cuda.is_available():
        return torch.device("cpu")
    device = torch.device("cuda", 0)
    torch.cuda.set_device(device)
    return device


def in_words(device: torch.device) -> str:
    """The device by name, e.g. "GPU NVIDIA H100 80GB HBM3" or "CPU AMD EPYC 9R14, 2 cores"."""
    if device.type == "cuda":
        return f"GPU {torch.cuda.get_device_name(device)}"
    cores = len(os.sched_getaffinity(0))
    return f"CPU {_processor()}, {cores} core{'s' * (cores > 1)}"


def wait_for(device: torch.device) -> None:
    """Returns when the device has done what its current stream was given; other streams may work on."""
    if device.type == "cuda":
        torch.cuda.current_stream(device).synchronize()


def _processor() -> str:
    info = Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.exists() else []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor() or platform.machine()
