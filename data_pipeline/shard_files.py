"""Shards as files: whether they are what the manifest says, and whether a row group of one fits into memory.

A checksum proves bytes; whoever can write a manifest can write one that fits. So sizes that a file declares are held
against the manifest, against each other and against this machine before memory is taken for them.
"""

from collections.abc import Iterable, Sequence, Set
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from data_pipeline.manifest import Shard, verify_checksums
from rankmixer_dist.checksum import file_inside
from rankmixer_dist.environment.machine import total_memory
from rankmixer_dist.errors import UserError, one_line

_ROOM_SHARE = 1 / 16
"""Of this machine's memory, for the values of a row group: some are held at once, and each is copied into a batch."""
_SMALL = 1 << 26
_HEADERS = 1 << 16
"""Bytes by which a column may be larger as it lies in the file than unpacked."""


def verify_shards(folder: Path, shards: Iterable[Shard], *, checksums: bool) -> None:
    """Makes sure that shards are files of their folder with the rows and row groups of the manifest, byte for byte if
    `checksums` says so.

    Raises:
        UserError: one is not.
    """
    for shard in shards:
        if checksums:
            verify_checksums(folder, [shard])
        path = folder / shard.path
        try:
            footer = pq.read_metadata(file_inside(folder, shard.path))
        except (OSError, pa.ArrowException, UnicodeDecodeError) as error:
            raise UserError(f"{path}: cannot be read ({one_line(error)}); prepare the data again") from error
        if (footer.num_rows, footer.num_row_groups) != (shard.rows, shard.row_groups):
            raise UserError(
                f"{path}: holds {footer.num_rows:,} rows in {footer.num_row_groups:,} row groups, the manifest says "
                f"{shard.rows:,} in {shard.row_groups:,}; prepare the data again"
            )


def places_of(schema: pq.ParquetSchema, columns: Set[str]) -> list[int]:
    """Where a file has the leaves of columns."""
    return [place for place in range(len(schema)) if schema.column(place).path.split(".")[0] in columns]


def too_large(row_group: pq.RowGroupMetaData, places: Sequence[int]) -> str | None:
    """Why columns of a row group, at `places_of` its file, do not fit into memory, in words; None where they do."""
    if max(places, default=-1) >= row_group.num_columns:
        return f"it has {row_group.num_columns} columns, fewer than the file says"
    unpacked = 0
    for place in places:
        column = row_group.column(place)
        size, packed = column.total_uncompressed_size, column.total_compressed_size
        if not 0 <= packed <= 1.1 * size + _HEADERS:
            return f"{packed:,} bytes of column {column.path_in_schema!r} are to unpack to {size:,}"
        unpacked += size
    if unpacked > _SMALL and unpacked > _ROOM_SHARE * total_memory():
        return f"it takes {unpacked / 2**30:,.1f} GiB, too much for this machine; use a smaller data.row_group_rows"
    return None
