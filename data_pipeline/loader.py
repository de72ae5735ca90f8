"""From prepared shards to each rank's batches, in an order that depends on the seed and the epoch alone.

The rows of an epoch form one stream: all chunks (row groups) of a split, shuffled, and dealt to lanes where the config
asks for them (`row_order`). Global batch s is rows [s * G, (s + 1) * G) of that stream and rank r of n takes the r-th
of n equal slices of it. So every row is read exactly once an epoch over all ranks, all ranks take the same number of
steps, and neither a global batch nor a data position depends on the number of ranks. The stream's tail, shorter than a
batch, is trained on too: `Batch` pads it.

Several steps are read at once where a rank's slice is small, up to `_ROWS_AT_ONCE` rows or a little more. A rank keeps
the decoded row groups that these rows are in: one or two of each of its L/n lanes, or those that the rows fill.
"""

import queue
import threading
from collections import OrderedDict
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Literal

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from data_pipeline.assemble import BatchAssembler
from data_pipeline.groups import UserSide, check_folded, cut, group_fields, side_of, unfold
from data_pipeline.id_range import id_beyond_table
from data_pipeline.manifest import Manifest, Shard, prepared_columns
from data_pipeline.row_order import Piece, RowOrder, files_at_once
from data_pipeline.shard_files import places_of, too_large
from data_pipeline.shards import READ_OPTIONS
from data_pipeline.table_rows import NoRowError
from rankmixer_dist.batch import Batch, Position
from rankmixer_dist.errors import RankError, UserError, one_line
from rankmixer_dist.schema import Schema
from rankmixer_dist.threads import start_thread

_OPEN_FILES = 256
"""A process may open 1,024 where nobody has raised the limit."""
_ROWS_AT_ONCE = 8192
"""A rank's rows that are made batches at once, or those of one step if these are more."""
_Step = tuple[Batch, Position]
"""A batch and the position after it."""


class Loader:
    """One rank's batches of a split.

    `rows` are all ranks'; an epoch of them is `steps_per_epoch` steps.

    Args:
        batch_size: G, rows of a global batch; a multiple of `world_size`.
        shuffle: `chunks` permutes the row groups anew each epoch; `none` keeps the order of the shards.
        lanes: parts of the line of row groups that each batch has a stripe of.
        prefetch: batches that a background thread reads ahead, in items of as many as have `_ROWS_AT_ONCE` rows.
        shares: rows of a group have the user side once, where the data is grouped; else each row has it.
        keys_of: features whose keys the batches keep beside the rows of their tables.

    Raises:
        UserError: while iterating, when the position lies beyond the rows.
        RankError: while iterating, when a shard cannot be read or holds an id that its table has no row for; names the
            file and the row group.
    """

    def __init__(
        self,
        folder: Path,
        manifest: Manifest,
        schema: Schema,
        *,
        split: str,
        batch_size: int,
        rank: int,
        world_size: int,
        shuffle: Literal["chunks", "none"],
        seed: int,
        lanes: int,
        prefetch: int,
        with_truth: bool = False,
        pin_memory: bool = False,
        keys_of: Sequence[str] = (),
        shares: bool = True,
    ) -> None:
        assert batch_size % world_size == 0, f"{batch_size} rows over {world_size} ranks"
        self._share = batch_size // world_size
        self._steps_at_once = -(-_ROWS_AT_ONCE // self._share)
        self._rank = rank
        self._shuffle: Literal["chunks", "none"] = shuffle
        self._seed, self._lanes, self._prefetch = seed, lanes, prefetch
        side = {} if manifest.group is None else manifest.group.user_side
        self._assemble = BatchAssembler(
            schema,
            rows=self._share,
            with_truth=with_truth,
            pin_memory=pin_memory,
            keys_of=keys_of,
            side=side if shares else {},
        )
        prepared = prepared_columns(schema, has_truth=manifest.has_truth)
        columns = pa.schema([prepared.field(name) for name in self._assemble.columns()])
        shards = manifest.splits[split]
        most_files = min(files_at_once(lanes=lanes, ranks=world_size), _OPEN_FILES)
        self._chunks = _Chunks(
            folder, shards, manifest.row_group_rows, columns, side, shares=shares, most_files=most_files
        )
        self._schema = schema
        self.batch_size = batch_size
        self.rows = manifest.rows(split)
        self.steps_per_epoch = -(-self.rows // batch_size)

    def epoch(self, position: Position) -> Iterator[_Step]:
        """The rest of an epoch from `position`: each batch with the position after it."""
        if position.row > self.rows:
            raise UserError(f"the data position is row {position.row:,} of {self.rows:,}; it is of other data")
        stop = threading.Event()
        ready: queue.Queue[list[_Step] | BaseException | None] = queue.Queue(-(-self._prefetch // self._steps_at_once))

        def put(item: list[_Step] | BaseException | None) -> bool:
            while not stop.is_set():
                try:
                    ready.put(item, timeout=0.1)
                    return True
                except queue.Full:
                    continue
            return False

        def read_ahead() -> None:
            try:
                for steps in self._read(position):
                    if not put(steps):
                        return
                put(None)
            except BaseException as error:  # handed to the consumer, which raises it
                put(error)

        reader = start_thread(read_ahead, name="loader")
        try:
            while (item := ready.get()) is not None:
                if isinstance(item, BaseException):
                    raise item
                yield from item
        finally:
            stop.set()
            reader.join()

    def _read(self, position: Position) -> Iterator[list[_Step]]:
        """Steps that were read at once."""
        order = RowOrder.of(
            self._chunks.rows, self._chunks.files, shuffle=self._shuffle, seed=self._seed, epoch=position.epoch,
            batch_size=self.batch_size, lanes=self._lanes,
        )  # fmt: skip
        firsts = range(position.row, self.rows, self.batch_size)
        for done in range(0, len(firsts), self._steps_at_once):
            yield from self._tried(order, position.epoch, firsts[done : done + self._steps_at_once])

    def _tried(self, order: RowOrder, epoch: int, firsts: Sequence[int]) -> Iterator[list[_Step]]:
        """The steps whose global batches begin at rows `firsts` of the stream; up to the one that cannot be read."""
        try:
            yield self._steps(order, epoch, firsts)
        except RankError:
            if len(firsts) == 1:
                raise
            for first in firsts:
                yield self._steps(order, epoch, [first])

    def _steps(self, order: RowOrder, epoch: int, firsts: Sequence[int]) -> list[_Step]:
        starts = np.asarray(firsts)
        stops = np.minimum(starts + self.batch_size, self.rows)
        mine = starts + self._rank * self._share
        pieces = order.pieces(mine, np.minimum(mine + self._share, stops))
        tables = self._chunks.read(pieces)
        weights = (stops - starts).tolist()
        try:
            batches = self._assemble.steps(tables, global_weights=weights)
        except NoRowError as error:
            found = (
                (piece[0], id_beyond_table(rows, self._schema)) for piece, rows in zip(pieces, tables, strict=True)
            )
            raise next(self._chunks.unreadable(chunk, told) for chunk, told in found if told is not None) from error
        return [(batch, Position(epoch, stop)) for batch, stop in zip(batches, stops.tolist(), strict=True)]


class SplitsInTurn:
    """One rank's batches of several splits, one after the other; epoch i of a `Position` is split i.

    A batch holds rows of one split: the tail of each is padded. `rows` and `steps_per_epoch` are those of all splits,
    which are passed once.
    """

    def __init__(self, loaders: Sequence[Loader]) -> None:
        self._loaders = loaders
        self.rows = sum(loader.rows for loader in loaders)
        self.steps_per_epoch = sum(loader.steps_per_epoch for loader in loaders)

    def epoch(self, position: Position) -> Iterator[tuple[Batch, Position]]:
        """The rest of a split from `position`: each batch with the position after it."""
        return self._loaders[position.epoch].epoch(position)


class _Chunks:
    """The row groups of a split, numbered in the order of the shards; those read last are kept for the next pieces."""

    def __init__(
        self,
        folder: Path,
        shards: list[Shard],
        row_group_rows: int,
        columns: pa.Schema,
        side: UserSide,
        *,
        shares: bool,
        most_files: int,
    ) -> None:
        self._paths = [folder / shard.path for shard in shards]
        sizes, places = [], []
        for index, shard in enumerate(shards):
            for group in range(shard.row_groups):
                sizes.append(min(row_group_rows, shard.rows - group * row_group_rows))
                places.append((index, group))
        self.rows = np.array(sizes, dtype=np.int64)
        self.files = np.array([shard for shard, _ in places], dtype=np.int64)
        self._places = places
        self._most_files = most_files
        self._columns = pa.schema([*columns, *group_fields(side)]) if side else columns
        self._side, self._shares = side, shares
        self._files: OrderedDict[int, tuple[pq.ParquetFile, list[int]]] = OrderedDict()
        self._kept: dict[int, pa.Table] = {}

    def read(self, pieces: Sequence[Piece]) -> list[pa.Table]:
        """The rows of each piece."""
        asked = dict.fromkeys(chunk for chunk, _, _ in pieces)
        self._kept = {chunk: table for chunk, table in self._kept.items() if chunk in asked}
        for chunk in asked:
            if chunk not in self._kept:
                self._kept[chunk] = self._load(chunk)
        if self._side and self._shares:
            return [cut(self._kept[chunk], self._side, first, rows) for chunk, first, rows in pieces]
        return [self._kept[chunk].slice(first, rows) for chunk, first, rows in pieces]

    def _load(self, chunk: int) -> pa.Table:
        shard, group = self._places[chunk]
        try:
            file, places = self._open(shard)
            reason = too_large(file.metadata.row_group(group), places)
            if reason is not None:
                raise _DamagedError(reason)
            # Not by the columns' names, which would be looked up for each row group.
            table = file.reader.read_row_group(group, column_indices=places, use_threads=False)
            if table.num_rows != self.rows[chunk]:
                raise _DamagedError(f"it has {table.num_rows} rows, not {self.rows[chunk]}")
            if self._side and self._shares:
                check_folded(table, self._side)
            elif self._side:
                table = unfold(table, self._side)
        except (pa.ArrowException, OSError, UnicodeDecodeError, _DamagedError) as error:
            raise self.unreadable(chunk, one_line(error)) from error
        return table

    def unreadable(self, chunk: int, why: str) -> RankError:
        """The line that names a chunk's file and row group."""
        shard, group = self._places[chunk]
        return RankError(
            f"{self._paths[shard]}: row group {group} cannot be read ({why}); "
            "if the file was damaged, prepare the data again"
        )

    def _open(self, shard: int) -> tuple[pq.ParquetFile, list[int]]:
        """A shard, and where it has the leaves of the columns."""
        if shard not in self._files:
            file = pq.ParquetFile(self._paths[shard], **READ_OPTIONS)
            # A column whose name was damaged would be left out silently, one of another type be read as other values.
            columns = {field.name: field for field in file.schema_arrow}
            for column in self._columns:
                if column.name not in columns or not columns[column.name].equals(column):
                    raise _DamagedError(f"it has no column {column.name!r} of type {column.type}")
            if side_of(file.schema_arrow.metadata) != self._side:
                raise _DamagedError("its rows share other columns than the manifest says")
            self._files[shard] = file, places_of(file.schema, {*self._columns.names})
            if len(self._files) > self._most_files:
                self._files.popitem(last=False)[1][0].close()
        return self._files[shard]


class _DamagedError(Exception):
    """A file is well-formed, but not what was written."""
