"""Shards as they arrive: which are there, what each holds, and the rows that a window has in it."""

import os
from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from data_pipeline.groups import group_fields, side_of, unfold
from data_pipeline.id_range import id_beyond_table
from data_pipeline.manifest import prepared_columns
from data_pipeline.shards import GROUPED_SHARD_FORMAT, READ_OPTIONS, SHARD_FORMAT
from data_pipeline.streaming.windows import WindowPlan
from rankmixer_dist.checksum import file_checksum
from rankmixer_dist.errors import UserError, one_line
from rankmixer_dist.metrics import Window
from rankmixer_dist.schema import LABEL_PREFIX, TIMESTAMP, IdFeature, Schema
from rankmixer_dist.there import is_file, is_folder

UNREAD = ""
"""Checksum of a shard whose bytes did not come; it is looked at again."""


@dataclass(frozen=True)
class Stamp:
    """What a look at a file's entry tells of its content: as long as it stays, so do the bytes."""

    bytes: int
    modified_ns: int

    @classmethod
    def of(cls, path: Path) -> "Stamp":
        """Of a file; raises `OSError` where there is none."""
        status = path.stat()
        return cls(status.st_size, status.st_mtime_ns)


@dataclass(frozen=True)
class Facts:
    """A shard that has been read from end to end once.

    rows: of each window. early_rows: before the first window. newest: the latest timestamp, None without a row.
    problem: why it is set aside, in one line that names file and row group; it then has no rows for any window.
    """

    name: str
    stamp: Stamp
    checksum: str
    rows: Mapping[Window, int]
    early_rows: int
    newest: int | None
    problem: str | None = None


def arrived(folder: Path, names: Collection[str] | None) -> dict[str, Stamp]:
    """The shards in a folder, all `*.parquet` or those named, and their stamps."""
    found = {}
    with os.scandir(folder) as entries:
        for entry in entries:
            wanted = entry.name in names if names is not None else entry.name.endswith(".parquet")
            if wanted and not entry.name.startswith("."):
                with suppress(FileNotFoundError):  # removed meanwhile
                    status = entry.stat()
                    found[entry.name] = Stamp(status.st_size, status.st_mtime_ns)
    return found


def scan(path: Path, schema: Schema, columns: Sequence[str], plan: WindowPlan) -> Facts:
    """Reads a shard from end to end, so that what is scored later is known to be readable and in range.

    Args:
        columns: that scoring reads.
    """
    stamp, checksum = Stamp(-1, -1), UNREAD
    try:
        stamp = Stamp.of(path)
        if not (is_file(path) or is_folder(path)):  # reading a pipe would wait for ever
            return Facts(path.name, stamp, "none", {}, 0, None, f"{path}: is no regular file; publish one")
        checksum = file_checksum(path)
        times = [
            _checked_times(path, group, table, schema, plan)
            for group, table in enumerate(read_groups(path, columns, schema))
        ]
    except UserError as error:
        return Facts(path.name, stamp, checksum, {}, 0, None, one_line(error))
    except OSError as error:
        return Facts(path.name, stamp, UNREAD, {}, 0, None, f"{path}: cannot be read ({one_line(error)})")
    times_R = np.concatenate([np.empty(0, np.int64), *times])
    rows, early_rows = plan.count(times_R)
    return Facts(path.name, stamp, checksum, rows, early_rows, int(times_R.max()) if len(times_R) else None)


def read_groups(path: Path, columns: Sequence[str], schema: Schema, window: Window | None = None) -> Iterator[pa.Table]:
    """A shard's row groups one by one; those known to hold nothing of `window` are left out.

    Raises:
        UserError: the file or a row group cannot be read, or a column is missing or of another type.
    """
    expected = prepared_columns(schema, has_truth=False)
    try:
        file = pq.ParquetFile(path, **READ_OPTIONS)
    except (pa.ArrowException, OSError, UnicodeDecodeError) as error:
        raise UserError(f"{path}: not a whole Parquet file ({one_line(error)}); publish it again") from error
    with file:
        metadata = file.schema_arrow.metadata or {}
        try:
            side = side_of(metadata)
        except pa.ArrowInvalid as error:
            raise UserError(f"{path}: {error}; publish it again") from error
        for key, version in (GROUPED_SHARD_FORMAT if side else SHARD_FORMAT).items():
            found = metadata.get(key)
            if found != version:
                was = "not there" if found is None else repr(found.decode(errors="replace"))
                raise UserError(
                    f"{path}: {key.decode()} in its Parquet metadata is {was}, not {version.decode()}, which says that "
                    "ids are keys; prepare it with this version"
                )
        types = {field.name: field.type for field in file.schema_arrow}
        for name in columns:
            if name not in types:
                raise UserError(f"{path}: has no column {name!r}; publish shards of prepared columns")
            if types[name] != expected.field(name).type:
                raise UserError(f"{path}: column {name!r} is {types[name]}, not {expected.field(name).type}")
        own = group_fields(side) if side else []
        for field in own:
            if types.get(field.name) != field.type:
                raise UserError(f"{path}: has no column {field.name!r} of type {field.type}; publish it again")
        for group in range(file.num_row_groups):
            if window is not None and _outside(file.metadata.row_group(group), window):
                continue
            try:
                needed = [*columns, *(field.name for field in own)]
                table = file.read_row_group(group, columns=needed, use_threads=False)
                table = unfold(table, side) if side else table
            except (pa.ArrowException, OSError, UnicodeDecodeError) as error:
                raise UserError(
                    f"{path}: row group {group} cannot be read ({one_line(error)}); publish it again"
                ) from error
            yield table


def rows_of(path: Path, columns: Sequence[str], schema: Schema, window: Window) -> Iterator[pa.Table]:
    """A window's rows in a shard, in file order, whatever the order of their times; raises as `read_groups` does."""
    for table in read_groups(path, columns, schema, window):
        times_R = table[TIMESTAMP].to_numpy()
        inside_R = (times_R >= window.start) & (times_R < window.end)
        if inside_R.all():
            yield table
        elif inside_R.any():
            yield table.filter(pa.array(inside_R))


def _checked_times(path: Path, group: int, table: pa.Table, schema: Schema, plan: WindowPlan) -> np.ndarray:
    """The timestamps [rows] of a row group whose values are all usable."""

    def refuse(name: str, what: str) -> UserError:
        return UserError(f"{path}: row group {group}: column {name!r} {what}; publish it again under a new name")

    for name in table.column_names:
        column = table[name].combine_chunks()
        if column.null_count and not isinstance(schema.features.get(name), IdFeature):
            raise refuse(name, f"has {column.null_count} nulls, which only columns of one id a row have")
        if isinstance(column, pa.ListArray) and column.flatten().null_count:
            raise refuse(name, "has lists with nulls in them")
    for task in schema.tasks:
        labels_R = table[LABEL_PREFIX + task].to_numpy()
        wrong_R = ~(np.isnan(labels_R) | (labels_R == 0) | (labels_R == 1))
        if wrong_R.any():
            raise refuse(LABEL_PREFIX + task, f"holds {labels_R[wrong_R][0]:g}; a label is 0, 1 or NaN for unknown")
    beyond = id_beyond_table(table, schema)
    if beyond is not None:
        raise UserError(f"{path}: row group {group}: {beyond}; publish it again under a new name")
    times_R = table[TIMESTAMP].to_numpy()
    if len(times_R) and times_R.max() > plan.latest_ms:
        # One such row would close all windows before it.
        what = f"holds {times_R.max()}, in Unix ms a time to come (stream.ahead_hours)"
        raise refuse(TIMESTAMP, what)
    return times_R


def _outside(group: pq.RowGroupMetaData, window: Window) -> bool:
    """Whether the file's own statistics say that a row group holds nothing of a window."""
    for place in range(group.num_columns):
        column = group.column(place)
        if column.path_in_schema == TIMESTAMP and column.statistics is not None and column.statistics.has_min_max:
            return column.statistics.max < window.start or column.statistics.min >= window.end
    return False
