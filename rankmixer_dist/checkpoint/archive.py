"""A tensor's archive, as `torch.save` writes it: nothing in one runs, and it takes no more memory than it has bytes."""

import os
import pickle
import pickletools
import re
import struct
import zipfile
from io import BufferedReader
from pathlib import Path
from typing import IO, cast

import torch
from torch import Tensor
from torch.distributed.checkpoint.utils import _ReaderView

from rankmixer_dist.checkpoint.index import MAX_OVERHEAD
from rankmixer_dist.checksum import file_inside, open_regular

_NAMED = {"torch._utils _rebuild_tensor_v2", "collections OrderedDict"}
"""What the pickle of a tensor names beside the type of its storage."""
_HEADER, _LENGTHS = struct.Struct("<4s5H3I2H"), struct.Struct("<2H")
"""Of an entry of a zip archive; its last two numbers are the lengths of the name and of the extra field after it."""
_ENTRY, _DIRECTORY, _DESCRIPTOR, _HAS_DESCRIPTOR = b"PK\x03\x04", b"PK\x01\x02", b"PK\x07\x08", 8
_STORAGE = re.compile(r"torch [A-Z][A-Za-z0-9]*Storage")
_NAMING = {"GLOBAL", "STACK_GLOBAL", "INST", "EXT1", "EXT2", "EXT4"}


class _Part(_ReaderView):
    """A part of a file as a file; torch's own takes a place counted from the end for one beyond it."""

    def seek(self, offset: int, whence: int = os.SEEK_SET, /) -> int:
        if whence == os.SEEK_END:
            offset, whence = self.len + offset, os.SEEK_SET
        super().seek(offset, whence)
        return self.tell()


def open_pieces(folder: Path, name: str, end: int) -> BufferedReader:
    """Opens a file of a checkpoint whose pieces end at byte `end`.

    Raises:
        OSError: it cannot be read, or is no regular file in the folder.
        ValueError: it is too short.
    """
    path = file_inside(folder, name)
    size = path.stat().st_size
    if size < end:
        raise ValueError(f"{name} has {size:,} bytes, the index names {end:,}")
    return open_regular(path)


def read_archive(whole: BufferedReader, start: int, length: int, dtype: torch.dtype) -> Tensor:
    """The tensor in `length` bytes of a file from `start` on.

    Raises:
        ValueError: it is none, or one of another type.
    """
    file = cast(IO[bytes], _Part(whole, start, length))
    try:
        with zipfile.ZipFile(file) as archive:
            entries = archive.infolist()
            if not all(_lies_where_it_says(file, entry) for entry in entries):
                raise ValueError("it is no tensor: its archive contradicts itself")
            packed = any(entry.compress_type != zipfile.ZIP_STORED for entry in entries)
            if packed or sum(entry.file_size for entry in entries) > length:
                raise ValueError("it is no tensor: it unpacks to more than it has")
            pickled = [entry for entry in entries if entry.filename.endswith("data.pkl")]
            if len(pickled) != 1 or pickled[0].file_size > MAX_OVERHEAD or not _is_plain(archive.read(pickled[0])):
                raise ValueError("it is no tensor")
        file.seek(0)
        tensor = torch.load(file, map_location="cpu", weights_only=True)
    # zipfile raises NotImplementedError of a way of packing or a version that it does not know.
    except (zipfile.BadZipFile, NotImplementedError, RuntimeError, EOFError, pickle.UnpicklingError) as error:
        raise ValueError("it is no tensor") from error
    if not isinstance(tensor, Tensor) or tensor.layout != torch.strided or tensor.dtype != dtype:
        raise ValueError(f"it is no tensor of type {dtype}")
    if not tensor.is_contiguous() or tensor.untyped_storage().nbytes() != tensor.numel() * dtype.itemsize:
        raise ValueError("its numbers are not those of its archive, in their order")
    return tensor


def _lies_where_it_says(file: IO[bytes], entry: zipfile.ZipInfo) -> bool:
    """Whether an entry is followed by what must follow it; torch reads from where its header says, without a check."""
    file.seek(entry.header_offset + _HEADER.size - 4)
    name, extra = _LENGTHS.unpack(file.read(_LENGTHS.size).ljust(_LENGTHS.size))
    file.seek(entry.header_offset + _HEADER.size + name + extra + entry.compress_size)
    follows = file.read(8)
    if entry.flag_bits & _HAS_DESCRIPTOR:
        return follows == _DESCRIPTOR + entry.CRC.to_bytes(4, "little")
    return follows[:4] in (_ENTRY, _DIRECTORY)


def _is_plain(pickled: bytes) -> bool:
    """Whether a pickle names nothing but what makes a tensor; else it could ask for memory that it does not fill."""
    named = [(code.name, str(what)) for code, what, _ in pickletools.genops(pickled) if code.name in _NAMING]
    return all(code == "GLOBAL" and (what in _NAMED or _STORAGE.fullmatch(what)) for code, what in named)
