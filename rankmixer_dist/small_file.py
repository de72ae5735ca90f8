"""Small text files that somebody else wrote, or damaged, and places to write to: one clear line about what is wrong."""

import json
import os
from contextlib import suppress
from pathlib import Path
from typing import Any

from rankmixer_dist.errors import UserError, disk_errors_told, one_line
from rankmixer_dist.there import is_file, is_folder, is_there

MAX_BYTES = 256 << 20


def read_text(path: Path, *, grows: bool = False) -> str:
    """The text of a regular file in UTF-8, a byte order mark left out.

    Never waits: a named pipe or a device is refused.

    Args:
        grows: It may be of any size, as the log of a long run.

    Raises:
        UserError: there is no such file, it is a folder or no regular file, larger than `MAX_BYTES`, not UTF-8, or the
            system does not let it be read.
    """
    try:
        if is_folder(path):
            raise UserError(f"{path}: is a folder; name a file")
        if not is_file(path):
            raise UserError(f"{path}: {'is no regular file; name one' if is_there(path) else 'no such file'}")
        if path.stat().st_size > MAX_BYTES and not grows:
            raise UserError(f"{path}: {path.stat().st_size:,} bytes; a file of its kind has less than {MAX_BYTES:,}")
        return path.read_bytes().decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = error.object.count(b"\n", 0, error.start) + 1
        byte = error.object[error.start]
        raise UserError(f"{path}: line {line} is not UTF-8 (byte {byte:#04x}); save the file as UTF-8 text") from error
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({error.strerror or one_line(error)})") from error


def read_json(path: Path) -> Any:
    """The value in a JSON file.

    Raises:
        UserError: as `read_text`, or the file is not JSON.
    """
    return parse_json(read_text(path), f"{path}:")


def parse_json(text: str, where: str) -> Any:
    """The value of a JSON text; numbers that are none, as NaN, are null.

    Raises:
        UserError: it is none; `where` begins the line.
    """
    try:
        return json.loads(text, parse_constant=lambda _: None)
    except (ValueError, RecursionError) as error:
        raise UserError(f"{where} not JSON ({one_line(error)})") from error


def write_text(path: Path, text: str) -> None:
    """Writes a file in UTF-8, complete or not at all: what was there stands until then, and nothing else is left.

    Raises:
        UserError: it cannot be written: a full disk, a missing right.
    """
    aside = path.with_name(path.name + ".partial")
    with disk_errors_told(path):
        try:
            aside.write_text(text, encoding="utf-8")
            os.replace(aside, path)
        except OSError:
            with suppress(OSError):
                aside.unlink()
            raise


def append_whole(descriptor: int, record: bytes, *, sync: bool = False) -> None:
    """Writes all of a record at the end of a file, or nothing.

    Args:
        descriptor: opened to append.
        sync: the record is on disk when this returns.

    Raises:
        OSError: a full disk, or worse; what it took of the record is cut off again, if that can be done.
    """
    before, left = os.fstat(descriptor).st_size, memoryview(record)
    try:
        while left:  # a disk that is nearly full takes a part
            left = left[os.write(descriptor, left) :]
        if sync:
            os.fsync(descriptor)
    except OSError:
        with suppress(OSError):
            os.ftruncate(descriptor, before)
        raise


def require_place(folder: Path, key: str) -> None:
    """Makes sure that a folder can be made, or written into, without touching anything.

    Raises:
        UserError: a part of its path is a file, or this user may not write there; `key` begins the line.
    """
    try:
        with suppress(FileNotFoundError, NotADirectoryError):
            folder.lstat()  # which a name may be too long for
        there = next(path for path in (folder, *folder.absolute().parents) if os.path.lexists(path))
        if not is_folder(there):
            raise UserError(f"{key} {folder}: {there} is no folder; move it away, or name another place")
        if not os.access(there, os.W_OK | os.X_OK):
            raise UserError(f"{key} {folder}: this user may not write into {there}; name another place")
    except OSError as error:
        raise UserError(f"{key} {folder}: {error.strerror or one_line(error)}; name another place") from error


def require_file_or_none(path: Path) -> None:
    """Makes sure that a file can be appended to without waiting for whoever reads a pipe.

    Raises:
        UserError: something else lies there.
    """
    if is_there(path) and not is_file(path):
        raise UserError(f"{path}: is no regular file, and one is written there; move it away")
