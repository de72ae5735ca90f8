"""What libraries raise of a user's machine and files, as one line with a way to mend it; all else keeps its traceback.

The classes are known by name, so that none of the libraries is imported.
"""

import errno
import os
import re
import threading
from collections.abc import Iterator
from contextlib import contextmanager

from rankmixer_dist.errors import one_line

_BY_NUMBER = {
    errno.ENOSPC: "no space is left on this disk; make room and start again",
    errno.EDQUOT: "the disk quota is used up; make room and start again",
    errno.EACCES: "permission denied; give this user the right, or name another place",
    errno.EPERM: "the system does not allow it; name another place",
    errno.EROFS: "this file system is read-only; name another place",
    errno.ENOENT: "no such file or folder; make it, or name another",
    errno.ENOTDIR: "a part of this path is a file, not a folder; name another path",
    errno.EISDIR: "is a folder, and a file is needed; move it away, or name another path",
    errno.EEXIST: "is there already, and something else is needed; move it away, or name another path",
    errno.ENOTEMPTY: "the folder is not empty; move it away, or name another path",
    errno.ENAMETOOLONG: "this name is too long for the file system; choose a shorter one",
    errno.ELOOP: "its symbolic links lead round in a circle; mend them",
    errno.EIO: "the disk or the network file system failed; look at the system's log",
    errno.ESTALE: "the network file system lost this file; mount it again",
    errno.ENXIO: "is no regular file; move it away, or name another path",
    errno.EMFILE: "too many files are open; raise the limit (`ulimit -n 65536`) and start again",
    errno.ENFILE: "the machine has too many open files; close some and start again",
    errno.ENOMEM: "the system has no memory left; free some, or take smaller sizes",
    errno.EADDRINUSE: "this network address is in use; choose another port, or end the process that holds it",
}
_NAMELESS = {errno.ENOSPC, errno.EDQUOT, errno.EMFILE, errno.ENFILE, errno.ENOMEM, errno.EADDRINUSE}
"""Of an error that names no file: what can be told all the same."""

_MEMORY = "memory is used up: {said}; take a smaller loader.batch_size, eval.batch_size or tables, or more ranks"
_RAY = "Ray: {said}; start again, and if it stays see `python launch/doctor.py` for memory and the disk"
_BY_CLASS = {
    "builtins.MemoryError": _MEMORY,
    "torch.OutOfMemoryError": _MEMORY,
    "torch.distributed.DistNetworkError": "the ranks cannot reach each other: {said}; check MASTER_ADDR and "
    "MASTER_PORT, and that no firewall is between the hosts",
    "ray.exceptions.RayError": _RAY,
}
_BY_MACHINE = ("torchrec", "fbgemm_gpu")
"""Modules of packages that a wheel cannot ask for: which build of them is the right one, the machine decides."""
_BY_WORDS = {
    r"EADDRINUSE|address already in use": "the port {port} is in use; choose another one as MASTER_PORT (torchrun: "
    "--master-port), or end the process that holds it",
    r"DefaultCPUAllocator: (can't allocate|not enough) memory|CUDA out of memory|Storage size calculation overflowed": (
        _MEMORY
    ),
}
"""Of a RuntimeError or what is derived from it, which is all that torch raises."""
_LOST = re.compile(
    r"gloo/transport/.*\] .*(closed by peer|reset by peer|Broken pipe)|ncclRemoteError|remote process exit"
)
"""In a RuntimeError of gloo or NCCL: the other end of a connection is no more."""


def explain(error: BaseException) -> str | None:
    """The line for an exception that comes from a user's machine or files; None for one that nobody foresaw."""
    cause = getattr(error, "cause", None)
    if isinstance(cause, BaseException):  # Ray's, around what a task raised
        return explain(cause)
    if isinstance(error, OSError) and not _names(error) & {"ray.exceptions.RayError"}:
        return _of_system(error)
    if isinstance(error, ModuleNotFoundError) and error.name in _BY_MACHINE:
        return f"{error.name} is not installed; `python launch/doctor.py` says which build this machine needs"
    said = _shown(error)
    if isinstance(error, RuntimeError):
        if _LOST.search(str(error)):
            return "another rank ended while this one waited for it; what that rank says, or its host's log, tells why"
        for words, line in _BY_WORDS.items():
            if re.search(words, str(error)):
                port = re.search(r"port: (\d+)", str(error))
                return line.format(said=said, port=port[1] if port else "of MASTER_PORT")
    if _names(error) & {"pyarrow.lib.ArrowException"}:
        paths = (found.rstrip(".,:;") for found in re.findall(r"/[^\s'\"]+", str(error)))
        path = next((path for path in paths if os.path.isdir(path.rpartition("/")[0])), None)  # not "and/or"
        return f"{said}; mend or replace {path}" if path else None
    return next((line.format(said=said) for name, line in _BY_CLASS.items() if name in _names(error)), None)


def is_lost_rank(error: BaseException) -> bool:
    """Whether a rank ended because another one, or its host, was gone: a new start may go on."""
    lost = isinstance(error, RuntimeError) and _LOST.search(str(error))
    return bool(lost) or "torch.distributed.DistNetworkError" in _names(error)


@contextmanager
def quiet_board() -> Iterator[None]:
    """Inside the block, TensorBoard's thread that cannot write prints no traceback: its owner's next call raises it."""
    before = threading.excepthook

    def told(args: threading.ExceptHookArgs) -> None:
        if not (isinstance(args.exc_value, OSError) and type(args.thread).__module__.startswith("tensorboard.")):
            before(args)

    threading.excepthook = told
    try:
        yield
    finally:
        threading.excepthook = before


def _of_system(error: OSError) -> str | None:
    line = _BY_NUMBER.get(error.errno or 0)
    if error.filename is None:
        missing = re.match(r"(lib\S+): cannot open shared object file", str(error))
        if missing:  # of the NVIDIA driver, where the environment is one for GPUs
            return f"the library {missing[1]} is not on this machine; `python launch/doctor.py` says more"
        return line if error.errno in _NAMELESS else None
    names = [str(name) for name in (error.filename, error.filename2) if name is not None]
    return f"{' to '.join(names)}: {line or one_line(OSError(error.strerror))}"


def _names(error: BaseException) -> set[str]:
    return {f"{kind.__module__}.{kind.__qualname__}" for kind in type(error).__mro__}


def _shown(error: BaseException) -> str:
    """The first sentence that an exception says of itself, without the frames that some put behind it."""
    said = next((line.strip() for line in str(error).splitlines() if line.strip()), type(error).__name__)
    return said.split("Exception raised from", 1)[0].strip().rstrip(".;:,")
