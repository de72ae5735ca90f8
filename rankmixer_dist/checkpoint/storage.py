"""Pieces of tensors to files and back, by torch.distributed.checkpoint: any layout of pieces reads what another wrote.

DCP keeps its index as a pickle, which runs what it is told to when it is read. Here the index is JSON, and tensors are
read with `weights_only`, so a checkpoint can hold nothing but numbers.
"""

import dataclasses
import json
import math
import os
import pickle
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, cast

import torch
import torch.distributed as dist
import torch.distributed.checkpoint as dcp
from torch import Tensor
from torch.distributed.checkpoint.metadata import (
    STORAGE_TYPES,
    ChunkStorageMetadata,
    Metadata,
    MetadataIndex,
    StorageMeta,
    TensorProperties,
    TensorStorageMetadata,
)
from torch.distributed.checkpoint.planner import (
    LoadPlan,
    ReadItem,
    SavePlan,
    TensorWriteData,
    WriteItem,
    WriteItemType,
)
from torch.distributed.checkpoint.planner_helpers import create_read_items_for_chunk_list
from torch.distributed.checkpoint.storage import WriteResult

from rankmixer_dist.errors import UserError, one_line
from rankmixer_dist.pieces import Piece, by_key, whole

INDEX_NAME = "index.json"


def write_pieces(pieces: Sequence[Piece], folder: Path, *, group: dist.ProcessGroup | None = None) -> None:
    """Writes a tensor's pieces once, whichever ranks hold them; all ranks of `group` call it.

    Raises:
        OSError: a rank could not write; every rank raises what the first one met.
    """
    held = by_key(pieces)
    try:
        dcp.save(held, storage_writer=_Writer(folder), planner=_SavePlanner(), process_group=group)
    except dcp.api.CheckpointException as error:
        rank, (first, _) = min(error.failures.items())
        raise OSError(f"rank {rank}: {first}") from error


def read_pieces(pieces: Sequence[Piece], folder: Path, *, group: dist.ProcessGroup | None = None) -> None:
    """Fills the pieces with what `folder` holds for them; all ranks of `group` call it, each with its own.

    Raises:
        UserError: a tensor is missing, has another shape, or cannot be read.
    """
    index = read_index(folder)
    for piece in pieces:
        if piece.key not in index:
            raise UserError(f"{folder}: does not hold {piece.key}")
        if index[piece.key].shape != piece.shape:
            raise UserError(f"{folder}: {piece.key} has shape {index[piece.key].shape}, the model's has {piece.shape}")
    _load(pieces, folder, process_group=group)


def _load(pieces: Iterable[Piece], folder: Path, **how: Any) -> None:
    try:
        dcp.load(by_key(pieces), storage_reader=_Reader(folder), planner=_LoadPlanner(), **how)
    except dcp.api.CheckpointException as error:
        rank, (first, _) = min(error.failures.items())
        # torch's own words for what is not a tensor advise to read it unsafely.
        refused = isinstance(first, pickle.UnpicklingError)
        reason = "it is no tensor" if refused else one_line(first) or type(first).__name__
        raise UserError(f"{folder}: rank {rank} cannot read it: {reason}") from error


@dataclasses.dataclass(frozen=True)
class Held:
    """A tensor in a checkpoint."""

    shape: tuple[int, ...]
    dtype: torch.dtype


def read_index(folder: Path) -> dict[str, Held]:
    """What a checkpoint holds, by key.

    Raises:
        UserError: there is no index, or it is not one.
    """
    tensors = _tensors(_read_metadata(folder))
    return {key: Held(tuple(each.size), each.properties.dtype) for key, each in tensors.items()}


def read_whole(folder: Path, keys: Iterable[str] | None = None) -> dict[str, Tensor]:
    """Tensors as a whole, all or those of `keys`, by one process without a group; raises as `read_pieces` does."""
    index = read_index(folder)
    wanted = {key: torch.empty(index[key].shape, dtype=index[key].dtype) for key in (index if keys is None else keys)}
    _load([whole(key, each) for key, each in wanted.items()], folder, no_dist=True)
    return wanted


def _tensors(metadata: Metadata) -> dict[str, TensorStorageMetadata]:
    """A checkpoint holds nothing but tensors."""
    return cast(dict[str, TensorStorageMetadata], metadata.state_dict_metadata)


def _chunk(piece: Piece) -> ChunkStorageMetadata:
    return ChunkStorageMetadata(offsets=torch.Size(piece.offsets), sizes=piece.tensor.size())


def _at(held: dict[str, list[Piece]], index: MetadataIndex) -> Tensor:
    return next(piece.tensor for piece in held[index.fqn] if torch.Size(piece.offsets) == index.offset)


class _SavePlanner(dcp.DefaultSavePlanner):
    """Plans the writing of pieces; one that several ranks hold is written by the least busy of them."""

    def set_up_planner(
        self, state_dict: dict[str, Any], storage_meta: StorageMeta | None = None, is_coordinator: bool = False
    ) -> None:
        self.flatten_state_dict = False
        self.state_dict, self.is_coordinator = state_dict, is_coordinator

    def create_local_plan(self) -> SavePlan:
        self.plan = SavePlan([_write_item(piece) for pieces in self.state_dict.values() for piece in pieces])
        return self.plan

    def lookup_object(self, index: MetadataIndex) -> Tensor:
        return _at(self.state_dict, index)


def _write_item(piece: Piece) -> WriteItem:
    return WriteItem(
        index=MetadataIndex(piece.key, piece.offsets),
        type=WriteItemType.SHARD,
        tensor_data=TensorWriteData(
            chunk=_chunk(piece),
            properties=TensorProperties(dtype=piece.tensor.dtype),
            size=torch.Size(piece.shape),
        ),
    )


class _LoadPlanner(dcp.DefaultLoadPlanner):
    """Plans the reading of pieces from whatever boxes the tensors were cut into when they were written."""

    def set_up_planner(
        self, state_dict: dict[str, Any], metadata: Metadata | None = None, is_coordinator: bool = False
    ) -> None:
        self.state_dict, self.metadata, self.is_coordinator = state_dict, metadata, is_coordinator

    def create_local_plan(self) -> LoadPlan:
        assert self.metadata is not None
        items: list[ReadItem] = []
        for key, pieces in self.state_dict.items():
            saved = _tensors(self.metadata)[key]
            items += create_read_items_for_chunk_list(key, saved, [_chunk(piece) for piece in pieces])
        return LoadPlan(items)

    def lookup_tensor(self, index: MetadataIndex) -> Tensor:
        return _at(self.state_dict, index)


class _Writer(dcp.FileSystemWriter):
    """DCP's writer with a JSON index."""

    def finish(self, metadata: Metadata, results: list[list[WriteResult]]) -> None:
        places = {written.index: written.storage_data for of_rank in results for written in of_rank}
        tensors = {}
        for key, each in _tensors(metadata).items():
            chunks = []
            for chunk in each.chunks:
                place = places[MetadataIndex(key, chunk.offsets)]
                at = {"file": place.relative_path, "start": place.offset, "bytes": place.length}
                chunks.append({"offsets": [*chunk.offsets], "sizes": [*chunk.sizes], **at})
            dtype = str(each.properties.dtype).removeprefix("torch.")
            tensors[key] = {"dtype": dtype, "shape": [*each.size], "chunks": chunks}
        with Path(self.path, INDEX_NAME).open("w") as file:
            json.dump({"tensors": tensors}, file)
            file.flush()
            os.fsync(file.fileno())


class _Reader(dcp.FileSystemReader):
    """DCP's reader of what `_Writer` wrote."""

    def read_metadata(self, *args: Any, **kwargs: Any) -> Metadata:
        return _read_metadata(Path(self.path))


def _read_metadata(folder: Path) -> Metadata:
    path = folder / INDEX_NAME
    try:
        tensors = json.loads(path.read_text())["tensors"]
        shapes: dict[str, STORAGE_TYPES] = {}
        places = {}
        for key, each in tensors.items():
            dtype = getattr(torch, each["dtype"])
            if not isinstance(dtype, torch.dtype):
                raise ValueError(f"{each['dtype']!r} is not a type of numbers")
            chunks = [ChunkStorageMetadata(torch.Size(c["offsets"]), torch.Size(c["sizes"])) for c in each["chunks"]]
            if sum(math.prod(chunk.sizes) for chunk in chunks) != math.prod(each["shape"]):
                raise ValueError(f"{key} is not complete")
            shapes[key] = TensorStorageMetadata(TensorProperties(dtype=dtype), torch.Size(each["shape"]), chunks)
            for chunk in each["chunks"]:
                if Path(chunk["file"]).name != chunk["file"]:
                    raise ValueError(f"{chunk['file']!r} is not the name of a file beside it")
                place = dcp.filesystem._StorageInfo(chunk["file"], chunk["start"], chunk["bytes"])
                places[MetadataIndex(key, chunk["offsets"])] = place
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise UserError(f"{path}: not a readable index of a checkpoint: {error}") from error
    return Metadata(state_dict_metadata=shapes, storage_data=places, storage_meta=StorageMeta())
