"""How often each value of a prepared column occurs, read from the shards without a batch being made."""

from collections.abc import Sequence
from pathlib import Path

import pyarrow as pa

from data_pipeline.manifest import Manifest
from data_pipeline.shards import read_rows
from rankmixer_dist.errors import UserError, one_line
from rankmixer_dist.metrics import ValueCounts


def value_counts(
    folder: Path, manifest: Manifest, splits: Sequence[str], column: str, *, rank: int, world_size: int
) -> ValueCounts:
    """Of a column that holds one int64 or null a row, in this rank's share of the shards of `splits`; without nulls.

    Raises:
        UserError: a shard cannot be read; names the file.
    """
    found = ValueCounts()
    shards = [shard for split in splits for shard in manifest.splits[split]]
    for shard in shards[rank::world_size]:
        path = folder / shard.path
        try:
            values = read_rows(path, [column])[column].drop_null().to_numpy()
        except (pa.ArrowException, OSError, UnicodeDecodeError, KeyError) as error:
            raise UserError(
                f"{path}: column {column} cannot be read ({one_line(error)}); prepare the data again"
            ) from error
        found.update(values)
    return found
