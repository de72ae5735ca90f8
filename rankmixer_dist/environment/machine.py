"""Checks of the machine: devices, cores, memory, disk, shared memory and limits."""

from __future__ import annotations

import os
import resource
import shutil
import subprocess
from pathlib import Path

from rankmixer_dist.environment.check import REINSTALL_FOR_GPUS, Check, gibibytes, guarded

GIB = 2**30
CGROUP = Path("/sys/fs/cgroup")
SHARED_MEMORY = Path("/dev/shm")


@guarded("cuda devices")
def cuda() -> Check:
    """Every CUDA device that the driver lists is one that torch can use; none at all is fine too."""
    import torch

    driver = nvidia_driver()
    count = torch.cuda.device_count() if torch.cuda.is_available() else 0
    if count:
        names = sorted({torch.cuda.get_device_name(index) for index in range(count)})
        return Check("cuda devices", f"{count} x {', '.join(names)}, driver {driver or 'of unknown version'}")
    if driver is None or os.environ.get("RANKMIXER_DEVICE") == "cpu":
        return Check("cuda devices", "none: runs on the CPU")
    if os.environ.get("CUDA_VISIBLE_DEVICES") in ("", "-1"):
        return Check("cuda devices", "hidden by CUDA_VISIBLE_DEVICES", "warn", "unset CUDA_VISIBLE_DEVICES to use them")
    if torch.version.cuda is None:
        return Check("cuda devices", f"driver {driver}, but torch is a CPU build", "bad", REINSTALL_FOR_GPUS)
    mend = f"install an NVIDIA driver that supports CUDA {torch.version.cuda}; see nvidia-smi"
    return Check("cuda devices", f"driver {driver}, but torch cannot use it", "bad", mend)


def nvidia_driver() -> str | None:
    """The version of the NVIDIA driver, or None where there is none that works."""
    query = ["nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader"]
    try:
        run = subprocess.run(query, capture_output=True, text=True, timeout=30, check=True)
    except (OSError, subprocess.SubprocessError):
        return None
    return next(iter(run.stdout.split()), None)


def cores() -> Check:
    """At least two CPU cores may be used, by affinity and by the container's quota."""
    usable = float(len(os.sched_getaffinity(0)))
    quota, _, period = _cgroup("cpu.max").partition(" ")
    if quota.isdigit() and period.strip().isdigit():
        usable = min(usable, int(quota) / int(period))
    found = f"{usable:g} usable of {os.cpu_count()}"
    if usable < 2:
        return Check("cores", found, "warn", "give the machine or container 2 cores; with fewer, two ranks take turns")
    return Check("cores", found)


def memory() -> Check:
    """Memory that can still be taken, inside the container's limit."""
    total = total_memory()
    available, used = _available_memory(), _cgroup("memory.current")
    if _limited_memory() == total:
        available = min(available, total - int(used or 0))
    found = f"{gibibytes(available)} available of {gibibytes(total)}"
    mend = "free some memory or raise the container's limit; two ranks and Ray take about 3 GiB"
    if available < 3 * GIB:
        return Check("memory", found, "bad", mend)
    return Check("memory", found, "warn", mend) if available < 6 * GIB else Check("memory", found)


def total_memory() -> int:
    """Bytes that this process may take: the machine's memory, or less where its control group has a limit."""
    physical = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    return min(physical, _limited_memory() or physical)


def disk() -> Check:
    """Space left in the working folder, where prepared data and checkpoints go."""
    free = shutil.disk_usage(Path.cwd()).free
    found = f"{gibibytes(free)} free in the working folder"
    mend = "free some space, or set `runs` and `data.prepared` to folders on a larger disk"
    if free < 1 * GIB:
        return Check("disk", found, "bad", mend)
    return Check("disk", found, "warn", mend) if free < 5 * GIB else Check("disk", found)


def shared_memory() -> Check:
    """Ray's object store and worker processes share arrays through this folder; containers have 64 MiB by default."""
    name = f"shared memory ({SHARED_MEMORY})"
    mend = "docker run --shm-size=8g ...; on Kubernetes mount an emptyDir with medium: Memory there"
    if not os.access(SHARED_MEMORY, os.W_OK):
        return Check(name, "missing or not writable", "bad", mend)
    usage = shutil.disk_usage(SHARED_MEMORY)
    found = f"{gibibytes(usage.free)} free of {gibibytes(usage.total)}"
    return Check(name, found, "warn", mend) if usage.free < 1 * GIB else Check(name, found)


def open_files() -> Check:
    """Files and sockets that a process may hold open; Ray and many ranks need thousands."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft == resource.RLIM_INFINITY or soft >= 4096:
        return Check("open files", "unlimited" if soft == resource.RLIM_INFINITY else str(soft))
    wanted = 65536 if hard in (resource.RLIM_INFINITY, -1) else min(65536, hard)
    mend = f"ulimit -n {wanted}"
    if wanted < 4096:
        mend = "raise the hard limit: `nofile 65536` in /etc/security/limits.conf, or docker run --ulimit nofile=65536"
    return Check("open files", str(soft), "bad" if soft < 256 else "warn", mend)


def _available_memory() -> int:
    for line in Path("/proc/meminfo").read_text().splitlines():
        if line.startswith("MemAvailable:"):
            return int(line.split()[1]) * 1024
    return os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")


def _limited_memory() -> int | None:
    """The container's limit in bytes, if it has one."""
    limit = _cgroup("memory.max")
    return int(limit) if limit.isdigit() else None


def _cgroup(name: str) -> str:
    """A value of this container's control group (version 2), or nothing where there is none."""
    file = CGROUP / name
    return file.read_text().strip() if file.is_file() else ""
