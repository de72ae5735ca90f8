"""How much memory a run takes on top of what was there, by the count of Linux (and glibc)."""

import ctypes
import gc
from collections.abc import Callable
from pathlib import Path

PROCESS = Path("/proc/self")


def peak_bytes(run: Callable[[], object]) -> int:
    """The largest resident memory while `run` runs, minus that before."""
    # Memory that was freed but kept would be used again, and not be seen.
    gc.collect()
    ctypes.CDLL(None).malloc_trim(0)
    # 5 sets the peak back to what is resident now.
    (PROCESS / "clear_refs").write_text("5")
    before = _status("VmRSS")
    run()
    return _status("VmHWM") - before


def _status(name: str) -> int:
    line = next(line for line in (PROCESS / "status").read_text().splitlines() if line.startswith(f"{name}:"))
    return int(line.split()[1]) * 1024
