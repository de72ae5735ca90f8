"""The index of a checkpoint's tensors: which boxes of each lie where in which file, and the proof that it makes sense.

A seal proves bytes; whoever can write an index can seal it. So nothing in one is believed that its own figures, or the
sizes of the files, contradict.
"""

import itertools
import json
import math
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Annotated

import torch
from pydantic import Field, ValidationError
from torch.distributed.checkpoint.filesystem import _StorageInfo
from torch.distributed.checkpoint.metadata import (
    STORAGE_TYPES,
    ChunkStorageMetadata,
    Metadata,
    MetadataIndex,
    StorageMeta,
    TensorProperties,
    TensorStorageMetadata,
)

from rankmixer_dist.checksum import open_regular
from rankmixer_dist.errors import UserError, one_line
from rankmixer_dist.schema import Strict

INDEX_NAME = "index.json"
TYPES = {
    name: getattr(torch, name)
    for name in ("float64", "float32", "bfloat16", "float16", "int64", "int32", "int16", "int8", "uint8", "bool")
}
MAX_OVERHEAD = 1 << 16
"""Bytes that a tensor's archive may have beside its numbers; torch 2.13 writes fewer than 2,000."""
_MAX_DIMS = 8
_Int = Annotated[int, Field(ge=0, lt=1 << 48, strict=True)]
_Box = Annotated[tuple[_Int, ...], Field(max_length=_MAX_DIMS)]


class Chunk(Strict):
    """A box of a tensor, and its archive: bytes [start, start + bytes) of a file beside the index."""

    offsets: _Box
    sizes: _Box
    file: str
    start: _Int
    bytes: _Int


class Held(Strict):
    """A tensor in a checkpoint."""

    dtype: str
    shape: _Box
    chunks: tuple[Chunk, ...]

    @property
    def type(self) -> torch.dtype:
        """Its torch type."""
        return TYPES[self.dtype]


class _Index(Strict):
    tensors: dict[str, Held]


def read_index(folder: Path) -> dict[str, Held]:
    """What a checkpoint holds, by key.

    Raises:
        UserError: there is no index, or one that makes no sense.
    """
    path = folder / INDEX_NAME
    try:
        with open_regular(path) as file:
            tensors = _Index.model_validate(json.load(file), strict=False).tensors
        for key, held in tensors.items():
            _check(key, held)
        _check_files(tensors)
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(map(str, first["loc"]))
        raise UserError(f"{path}: not a readable index of a checkpoint: {where}: {first['msg']}") from error
    except (OSError, ValueError, RecursionError) as error:
        raise UserError(f"{path}: not a readable index of a checkpoint: {one_line(error)}") from error
    return tensors


def ends_of_files(tensors: Iterable[Held]) -> dict[str, int]:
    """File -> bytes that it must have at least."""
    ends: dict[str, int] = {}
    for held in tensors:
        for chunk in held.chunks:
            ends[chunk.file] = max(ends.get(chunk.file, 0), chunk.start + chunk.bytes)
    return ends


def metadata_of(tensors: Mapping[str, Held]) -> Metadata:
    """The same, as torch.distributed.checkpoint wants it."""
    shapes: dict[str, STORAGE_TYPES] = {}
    places = {}
    for key, held in tensors.items():
        chunks = [ChunkStorageMetadata(torch.Size(chunk.offsets), torch.Size(chunk.sizes)) for chunk in held.chunks]
        shapes[key] = TensorStorageMetadata(TensorProperties(dtype=held.type), torch.Size(held.shape), chunks)
        for chunk in held.chunks:
            places[MetadataIndex(key, chunk.offsets)] = _StorageInfo(chunk.file, chunk.start, chunk.bytes)
    return Metadata(state_dict_metadata=shapes, storage_data=places, storage_meta=StorageMeta())


def _check(key: str, held: Held) -> None:
    if held.dtype not in TYPES:
        raise ValueError(f"{key}: {held.dtype!r} is not a type of numbers")
    if any(len(chunk.offsets) != len(held.shape) or len(chunk.sizes) != len(held.shape) for chunk in held.chunks):
        raise ValueError(f"{key}: its pieces have not the {len(held.shape)} dimensions of its shape")
    if not covers_once(held.shape, [(chunk.offsets, chunk.sizes) for chunk in held.chunks]):
        raise ValueError(f"{key}: its pieces do not cover each of its numbers exactly once")
    for chunk in held.chunks:
        needed = math.prod(chunk.sizes) * held.type.itemsize
        if not needed <= chunk.bytes <= needed + MAX_OVERHEAD:
            raise ValueError(f"{key}: {chunk.bytes:,} bytes cannot hold a piece of {needed:,} bytes of {held.dtype}")
        if Path(chunk.file).name != chunk.file or chunk.file == "..":
            raise ValueError(f"{key}: {chunk.file!r} is not the name of a file beside it")


def covers_once(shape: Sequence[int], boxes: Iterable[tuple[Sequence[int], Sequence[int]]]) -> bool:
    """Whether boxes (offsets, sizes) cover each element of a shape exactly once, in time linear in their number.

    How often an element is covered is the sum, over all corners at or before it, of the corners' signs; so two sets of
    boxes cover alike exactly if their corners, each with its sign, are the same.
    """
    corners: defaultdict[tuple[int, ...], int] = defaultdict(int)
    for times, (offsets, sizes) in itertools.chain([(-1, ((0,) * len(shape), shape))], ((1, box) for box in boxes)):
        if 0 in sizes:
            continue
        ends = [(offset, offset + size) for offset, size in zip(offsets, sizes, strict=True)]
        for corner in itertools.product(*(((start, 1), (end, -1)) for start, end in ends)):
            corners[tuple(place for place, _ in corner)] += times * math.prod(sign for _, sign in corner)
    return not any(corners.values())


def _check_files(tensors: Mapping[str, Held]) -> None:
    """No byte of a file is a part of two pieces, so that a small file cannot stand for many tensors."""
    spans = sorted(
        (chunk.file, chunk.start, chunk.start + chunk.bytes, key)
        for key, held in tensors.items()
        for chunk in held.chunks
    )
    for (file, _, end, key), (other_file, start, _, other) in itertools.pairwise(spans):
        if file == other_file and start < end:
            raise ValueError(f"pieces of {key} and {other} lie in the same bytes of {file}")
