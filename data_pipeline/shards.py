"""Shards: the plan that cuts ordered rows into files, the file writer, and the statistics that go with it."""

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from data_pipeline.events import event_keys
from data_pipeline.groups import ORDER_FIELDS, UserSide, fold, group_fields, side_metadata, side_of, unfold
from data_pipeline.key_range import identity_features
from data_pipeline.manifest import (
    FORMAT_VERSION,
    GROUPED_FORMAT_VERSION,
    NumericStatistics,
    Shard,
    prepared_columns,
)
from rankmixer_dist.checksum import file_checksum
from rankmixer_dist.errors import disk_errors_told
from rankmixer_dist.schema import (
    GROUP_START,
    LABEL_PREFIX,
    ROW_ID,
    TIMESTAMP,
    USER_ID,
    IdFeature,
    NumericFeature,
    Schema,
)

# Measured on row groups of 128 to 1024 rows: lz4 reads 2 to 3 times as fast as zstd, for files 1.5 times as large, and
# a dictionary makes ids no faster and small row groups slower. Statistics are kept where a reader can prune by them.
# A checksum of every page makes files of 256 rows a row group 0.4 % larger.
WRITE_OPTIONS = {
    "compression": "lz4",
    "use_dictionary": False,
    "write_statistics": [ROW_ID, USER_ID, TIMESTAMP],
    "write_page_checksum": True,
}
SHARD_FORMAT = {b"rankmixer_dist.format": str(FORMAT_VERSION).encode()}
"""What a shard's own Parquet metadata says: a shard of rows of tables has the columns of one of keys."""
GROUPED_SHARD_FORMAT = {b"rankmixer_dist.format": str(GROUPED_FORMAT_VERSION).encode()}
# No memory map: to read where a mapped file was cut short, or its disk fails, kills the process with a bus error.
# Against a map without page checksums a loader's epoch took 0.97 to 1.04 times the CPU time, which is within the noise.
READ_OPTIONS = {"memory_map": False, "page_checksum_verification": True}


@dataclass(frozen=True)
class Slice:
    """Rows [start, stop) of one ordered partition."""

    partition: int
    start: int
    stop: int


@dataclass(frozen=True)
class ShardPlan:
    """A shard to write: rows that follow each other, from one or more partitions in order."""

    split: str
    index: int
    slices: tuple[Slice, ...]

    @property
    def name(self) -> str:
        """File name within the prepared folder."""
        return f"{self.split}-{self.index:05d}.parquet"


@dataclass(frozen=True)
class ShardTarget:
    """Where shards go and what they hold; `side` is what grouped rows share, None of rows without groups."""

    folder: Path
    schema: Schema
    row_group_rows: int
    has_truth: bool
    side: UserSide | None = None


@dataclass(frozen=True)
class Moments:
    """Count, mean and sum of squared deviations of some values, in float64."""

    count: int = 0
    mean: float = 0.0
    m2: float = 0.0

    @classmethod
    def of(cls, values: np.ndarray) -> "Moments":
        """Of the values that are not NaN."""
        present = values[~np.isnan(values)].astype(np.float64)
        if not len(present):
            return cls()
        mean = present.mean()
        return cls(len(present), float(mean), float(np.square(present - mean).sum()))

    def merge(self, other: "Moments") -> "Moments":
        """Of both sets of values together (Chan, Golub and LeVeque 1979)."""
        count = self.count + other.count
        if not count:
            return self
        delta = other.mean - self.mean
        mean = self.mean + delta * other.count / count
        return Moments(count, mean, self.m2 + other.m2 + delta**2 * self.count * other.count / count)

    def statistics(self) -> NumericStatistics:
        """Mean and population standard deviation."""
        return NumericStatistics(
            count=self.count, mean=self.mean, std=math.sqrt(self.m2 / self.count) if self.count else 0.0
        )


@dataclass(frozen=True)
class ShardResult:
    """A written shard and figures of its rows.

    Attributes:
        moments: Of its numeric features.
        ids: Of features that have not one a row, as they are written.
        read: The same as the rows of groups read them; empty without groups.
        highest: Of features on identity tables that have any id.
        groups: Of its rows.
        changes: By column, how many groups began because of it.
    """

    shard: Shard
    moments: Mapping[str, Moments]
    ids: Mapping[str, int]
    read: Mapping[str, int]
    highest: Mapping[str, int]
    groups: int
    changes: Counter[str]


def plan_shards(split_rows: Sequence[Mapping[str, tuple[int, int]]], shard_rows: int) -> list[ShardPlan]:
    """Cuts every split into shards of exactly `shard_rows` rows, the last one of a split shorter.

    Args:
        split_rows: For each ordered partition, split -> its rows [start, stop) within the partition.
    """
    plans = []
    for split in dict.fromkeys(name for ranges in split_rows for name in ranges):
        slices: list[Slice] = []
        free = shard_rows
        index = 0
        for partition, ranges in enumerate(split_rows):
            start, stop = ranges.get(split, (0, 0))
            while start < stop:
                end = min(stop, start + free)
                slices.append(Slice(partition, start, end))
                free -= end - start
                start = end
                if not free:
                    plans.append(ShardPlan(split, index, tuple(slices)))
                    slices, free, index = [], shard_rows, index + 1
        if slices:
            plans.append(ShardPlan(split, index, tuple(slices)))
    return plans


def write_shard(plan: ShardPlan, target: ShardTarget, *partitions: pa.Table) -> tuple[ShardResult]:
    """Writes a shard; `partitions` are the ones that the plan's slices name, in their order.

    The bytes depend on the rows alone, not on how they were partitioned.

    Raises:
        UserError: it cannot be written.
    """
    columns = prepared_columns(target.schema, has_truth=target.has_truth)
    pieces = [
        table.slice(piece.start, piece.stop - piece.start) for table, piece in zip(partitions, plan.slices, strict=True)
    ]
    together = pa.concat_tables(pieces)
    rows = together.select(columns.names).cast(columns.with_metadata(SHARD_FORMAT))
    written, groups, changes = rows, rows.num_rows, Counter[str]()
    if target.side is not None:
        for field in ORDER_FIELDS:
            written = written.append_column(field, together[field.name])
        written, changes = fold(written, target.side, row_group_rows=target.row_group_rows)
        written = written.replace_schema_metadata(GROUPED_SHARD_FORMAT | side_metadata(target.side))
        groups = pc.sum(written[GROUP_START]).as_py()
    path = target.folder / plan.name
    with disk_errors_told(path):
        pq.write_table(written, path, row_group_size=target.row_group_rows, **WRITE_OPTIONS)
    timestamps = rows[TIMESTAMP].to_numpy()
    labels = {task: rows[LABEL_PREFIX + task].to_numpy() for task in target.schema.tasks}
    shard = Shard(
        path=plan.name,
        rows=rows.num_rows,
        row_groups=-(-rows.num_rows // target.row_group_rows),
        first_timestamp=int(timestamps.min()),
        last_timestamp=int(timestamps.max()),
        labelled={task: int((~np.isnan(label)).sum()) for task, label in labels.items()},
        positives={task: int((label == 1).sum()) for task, label in labels.items()},
        checksum=file_checksum(path),
    )
    moments = {name: Moments.of(rows[name].to_numpy()) for name in target.schema.of_kind(NumericFeature)}
    lists = [column.name for column in columns if pa.types.is_list(column.type)]
    once = [name for name in target.side or {} if isinstance(target.schema.features.get(name), IdFeature)]
    ids = _items(written, lists) | dict.fromkeys(once, groups)
    read = _items(rows, lists) | dict.fromkeys(once, rows.num_rows) if target.side else {}
    highest = {name: pc.max(_keys_of(rows, name)).as_py() for name in identity_features(target.schema)}
    highest = {name: key for name, key in highest.items() if key is not None}
    return (ShardResult(shard, moments, ids, read, highest, groups, changes),)


def read_rows(path: Path, columns: Sequence[str] | None = None) -> pa.Table:
    """A shard's rows, each with its own user side; all columns by default."""
    with pq.ParquetFile(path, **READ_OPTIONS) as file:
        side = side_of(file.schema_arrow.metadata)
        own = [field.name for field in group_fields(side)] if side and columns is not None else []
        rows = file.read(columns=None if columns is None else [*columns, *own])
    return unfold(rows, side) if side else rows


def _items(rows: pa.Table, lists: Sequence[str]) -> dict[str, int]:
    return {name: pc.sum(pc.list_value_length(rows[name])).as_py() for name in lists}


def _keys_of(rows: pa.Table, name: str) -> pa.ChunkedArray:
    """The keys of a feature, or of a column of events."""
    if name not in rows.column_names:
        sequence, _, column = name.partition(".")
        return event_keys(rows[sequence], column)
    return pc.list_flatten(rows[name]) if pa.types.is_list(rows[name].type) else rows[name]
