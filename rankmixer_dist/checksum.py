"""Checksums of files and texts that must come back from disk as they were written."""

import errno
import hashlib
import json
import os
import stat
from io import BufferedReader
from pathlib import Path
from typing import Any

_BYTES = 16


def open_regular(path: Path) -> BufferedReader:
    """Opens a file to be read, and nothing that may have no end or never begin, such as a pipe or a device.

    Raises:
        OSError: it cannot be opened, or is not a regular file.
    """
    return open(regular_descriptor(path, os.O_RDONLY), "rb")


def regular_descriptor(path: Path, flags: int) -> int:
    """The same by the flags of `os.open`, which may ask for a file that is not there yet; raises as `open_regular`."""
    descriptor = os.open(path, flags | os.O_NONBLOCK | os.O_CLOEXEC, 0o666)
    if not stat.S_ISREG(os.fstat(descriptor).st_mode):
        os.close(descriptor)
        raise OSError(errno.EINVAL, "not a regular file", str(path))
    return descriptor


def file_inside(folder: Path, name: str) -> Path:
    """The regular file that a list of a folder's files names by its path below the folder.

    Raises:
        OSError: there is none, it is not a regular file, or it lies elsewhere, by `..` or by a link.
    """
    path = folder / name
    if "\0" in name:
        raise OSError(errno.EINVAL, "not the name of a file", repr(name))
    if not path.resolve().is_relative_to(folder.resolve()):
        raise OSError(errno.EINVAL, f"lies outside of {folder}", str(path))
    if not stat.S_ISREG(path.stat().st_mode):
        raise OSError(errno.EINVAL, "not a regular file", str(path))
    return path


def file_checksum(path: Path) -> str:
    """BLAKE2b-128 of a file's bytes, in hex; raises `OSError` as `open_regular` does."""
    with open_regular(path) as file:
        return hashlib.file_digest(file, lambda: hashlib.blake2b(digest_size=_BYTES)).hexdigest()


def text_checksum(text: bytes) -> str:
    """BLAKE2b-128 of an encoded text, in hex; equal to `file_checksum` of a file that holds it."""
    return hashlib.blake2b(text, digest_size=_BYTES).hexdigest()


def json_checksum(content: dict[str, Any] | list[Any]) -> str:
    """Of what a JSON text says: neither the order of its keys nor its white space counts."""
    return text_checksum(json.dumps(content, sort_keys=True).encode())
