"""Pieces of tensors to files and back, by torch.distributed.checkpoint: any layout of pieces reads what another wrote.

DCP keeps its index as a pickle, which runs what it is told to when it is read. Here the index is JSON, and tensors are
read with `weights_only`, so a checkpoint can hold nothing but numbers.
"""

import json
import os
import shutil
from collections.abc import Iterable, Mapping, Sequence
from io import BufferedReader
from pathlib import Path
from typing import Any, cast

import torch
import torch.distributed as dist
import torch.distributed.checkpoint as dcp
from torch import Tensor
from torch.distributed._shard._utils import narrow_tensor_by_index
from torch.distributed.checkpoint.filesystem import _StorageInfo
from torch.distributed.checkpoint.metadata import (
    ChunkStorageMetadata,
    Metadata,
    MetadataIndex,
    StorageMeta,
    TensorProperties,
    TensorStorageMetadata,
)
from torch.distributed.checkpoint.planner import (
    LoadPlan,
    LoadPlanner,
    ReadItem,
    SavePlan,
    TensorWriteData,
    WriteItem,
    WriteItemType,
)
from torch.distributed.checkpoint.planner_helpers import create_read_items_for_chunk_list
from torch.distributed.checkpoint.storage import WriteResult
from torch.futures import Future

from rankmixer_dist.checkpoint.archive import open_pieces, read_archive
from rankmixer_dist.checkpoint.index import INDEX_NAME, Held, ends_of_files, metadata_of, read_index
from rankmixer_dist.errors import UserError, one_line
from rankmixer_dist.pieces import Piece, by_key, whole


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
        reason = one_line(first)
        if "inline_container" in reason:  # torch's writer of archives does not say why it could not write
            reason = f"its file could not be written whole; the disk has {shutil.disk_usage(folder).free:,} bytes left"
        raise OSError(f"rank {rank}: {reason}") from error


def read_pieces(pieces: Sequence[Piece], folder: Path, *, group: dist.ProcessGroup | None = None) -> None:
    """Fills the pieces with what `folder` holds for them; all ranks of `group` call it, each with its own.

    Raises:
        UserError: a tensor is missing, has another shape, or cannot be read.
    """
    index = read_index(folder)
    for piece in pieces:
        held = index.get(piece.key)
        if held is None:
            raise UserError(f"{folder}: does not hold {piece.key}")
        if held.shape != piece.shape:
            raise UserError(f"{folder}: {piece.key} has shape {held.shape}, the model's has {piece.shape}")
        if held.type != piece.tensor.dtype:
            raise UserError(f"{folder}: {piece.key} has type {held.type}, the model's has {piece.tensor.dtype}")
    _load(pieces, folder, index, process_group=group)


def _load(pieces: Iterable[Piece], folder: Path, index: Mapping[str, Held], **how: Any) -> None:
    try:
        dcp.load(by_key(pieces), storage_reader=_Reader(folder, index), planner=_LoadPlanner(), **how)
    except dcp.api.CheckpointException as error:
        rank, (first, _) = min(error.failures.items())
        reason = one_line(first) or type(first).__name__
        raise UserError(f"{folder}: rank {rank} cannot read it: {reason}") from error


def read_whole(folder: Path, keys: Iterable[str] | None = None) -> dict[str, Tensor]:
    """Tensors as a whole, all or those of `keys`, by one process without a group; raises as `read_pieces` does."""
    index = read_index(folder)
    wanted = {key: index[key] for key in (index if keys is None else keys)}
    for name, end in ends_of_files(wanted.values()).items():
        try:
            open_pieces(folder, name, end).close()  # before memory is taken for what the index says
        except (OSError, ValueError) as error:
            raise UserError(f"{folder}: cannot read it: {one_line(error)}") from error
    tensors = {key: torch.empty(held.shape, dtype=held.type) for key, held in wanted.items()}
    _load([whole(key, each) for key, each in tensors.items()], folder, index, no_dist=True)
    return tensors


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
        return _at(self.state_dict, index).contiguous()


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
    """DCP's writer with a JSON index.

    It copies a tensor that lies on a GPU when the tensor's turn comes, and waits for the copy on that tensor's GPU.
    With its copying ahead it would wait for the stream of the thread's current GPU instead.
    """

    def __init__(self, folder: Path) -> None:
        super().__init__(folder, per_thread_copy_ahead=0)

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
    """DCP's reader of what `_Writer` wrote, which takes nothing but tensors of the type and shape that are said."""

    def __init__(self, folder: Path, index: Mapping[str, Held]) -> None:
        super().__init__(folder)
        self._folder, self._index = folder, index

    def read_metadata(self, *args: Any, **kwargs: Any) -> Metadata:
        return metadata_of(self._index)

    def read_data(self, plan: LoadPlan, planner: LoadPlanner) -> Future[None]:
        per_file: dict[str, list[ReadItem]] = {}
        for item in plan.items:
            per_file.setdefault(self.storage_data[item.storage_index].relative_path, []).append(item)
        for name, items in per_file.items():
            places = [self.storage_data[item.storage_index] for item in items]
            with open_pieces(self._folder, name, max(place.offset + place.length for place in places)) as file:
                for item, place in zip(items, places, strict=True):
                    held = self._index[item.storage_index.fqn]
                    tensor = _read(file, place, item.storage_index, held)
                    target = planner.resolve_tensor(item).detach()
                    target.copy_(narrow_tensor_by_index(tensor, item.storage_offsets, item.lengths))
                    planner.commit_tensor(item, target)
        done: Future[None] = Future()
        done.set_result(None)
        return done


def _read(file: BufferedReader, place: _StorageInfo, at: MetadataIndex, held: Held) -> Tensor:
    """A piece as it was written.

    Raises:
        ValueError: it is not what the index says.
    """
    tensor = read_archive(file, place.offset, place.length, held.type)
    sizes = next(chunk.sizes for chunk in held.chunks if torch.Size(chunk.offsets) == at.offset)
    if tensor.shape != torch.Size(sizes):
        raise ValueError(f"{at.fqn}: a piece has shape {tuple(tensor.shape)}, the index says {sizes}")
    return tensor
