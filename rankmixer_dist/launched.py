"""A rank does not outlive its launcher: it is killed with it, or stops as at SIGTERM where that can still be heard.

Importing it needs the standard library alone.
"""

import ctypes
import os
import signal
import sys
import threading
import time
from pathlib import Path

_PR_SET_PDEATHSIG = 1
_TORCHRUN, _DEEPSPEED = "TORCHELASTIC_RUN_ID", "CROSS_RANK"
"""What torchrun and deepspeed's launch.py set for the ranks they start."""
_OF_COMMAND = "--log_level="
"""What the `deepspeed` command alone says to launch.py, which it starts on its own host; elsewhere pdsh does."""
_LOOKS_EVERY_S = 1.0


def end_with_launcher() -> None:
    """From now on the kernel kills this process when the launcher that started it is gone, even if that was killed; and
    when the `deepspeed` command above the launcher is gone, this process gets a SIGTERM.

    Else ranks without a launcher would train on beside those of the next start. A launcher is what torchrun's or
    deepspeed's variables tell of, and any Python that started a rank. A shell in which somebody set RANK is none: what
    was started there outlives it, as under nohup. Only Linux can do this; to it, the end of the launcher's thread that
    started this process is the end of the launcher.
    """
    parent = os.getppid()
    by_launcher = _TORCHRUN in os.environ or _DEEPSPEED in os.environ
    if not sys.platform.startswith("linux") or "RANK" not in os.environ or not (by_launcher or _is_python(parent)):
        return
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    # It may have been gone before the kernel knew what to do; process 1 has then inherited this one.
    if os.getppid() != parent or (by_launcher and parent == 1 and not _is_python(1)):
        os.kill(os.getpid(), signal.SIGKILL)
    if _DEEPSPEED in os.environ and any(argument.startswith(_OF_COMMAND) for argument in _arguments(parent)):
        threading.Thread(target=_stop_without_command, args=(parent,), name="launcher watch", daemon=True).start()


def end_when_told_as_process_1() -> None:
    """Makes SIGTERM and its kin end this process where it is the first of a container: of that one the kernel keeps
    every signal away that it has not asked for, until the container's time is over and all are killed."""
    if os.getpid() == 1:
        for number in (signal.SIGTERM, signal.SIGHUP, signal.SIGUSR1):
            if signal.getsignal(number) is signal.SIG_DFL:
                signal.signal(number, lambda number, frame: os._exit(128 + number))


def _stop_without_command(launcher: int) -> None:
    """Waits until the `deepspeed` command is gone. On one host it ends at SIGTERM without a word to launch.py, which
    somebody else inherits, and whose ranks would train on."""
    command = _parent(launcher)
    if _program(launcher) in (None, _program(command)):  # else it was gone before, and another has inherited launch.py
        while _parent(launcher) == command:
            time.sleep(_LOOKS_EVERY_S)
    if os.environ.get("LOCAL_RANK", "0") == "0":
        # Unsaid where another rank that had not yet begun ends first: launch.py then ends this one too.
        os.write(2, b"note: the deepspeed command is gone; its ranks stop, as at SIGTERM\n")
    os.kill(os.getpid(), signal.SIGTERM)


def _is_python(process: int) -> bool:
    """Whether a process runs this Python; not where it belongs to somebody else, or is gone."""
    return _program(process) == _program(os.getpid())


def _program(process: int) -> str | None:
    """What a process runs; None of one that belongs to somebody else, or is gone."""
    try:
        return os.readlink(f"/proc/{process}/exe")
    except OSError:
        return None


def _parent(process: int) -> int:
    """The process that started another one, or has inherited it; 0 of one that is gone."""
    try:
        return int(Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()[1])
    except OSError:
        return 0


def _arguments(process: int) -> list[str]:
    try:
        return Path(f"/proc/{process}/cmdline").read_bytes().decode(errors="replace").split("\0")
    except OSError:
        return []
