"""Whether prepared rows hold a key that its feature's table has no row for, told on the host.

A table of `ids: hash` has a row for every key. On a GPU the lookup itself can only abort with an assert of the device,
after which nothing can be saved or told.
"""

from collections.abc import Iterator

import numpy as np
import pyarrow as pa

from data_pipeline.events import event_keys
from rankmixer_dist.schema import IdFeature, NumericFeature, Schema


def key_limit(schema: Schema, feature: str) -> int | None:
    """How many keys, from 0 on, a feature, or a column of events, can have: its buckets, or an identity table's rows
    but the missing id's.

    None of one whose keys are hashed.
    """
    if feature in schema.event_ids():
        table = schema.tables[schema.event_ids()[feature]]
        return table.rows - 1 if table.ids == "identity" else None
    declared = schema.features[feature]
    assert not isinstance(declared, NumericFeature), f"{feature} has no ids"
    if isinstance(declared, IdFeature) and declared.boundaries is not None:
        return len(declared.boundaries) + 1
    table = schema.tables[declared.table]
    return table.rows - 1 if table.ids == "identity" else None


def id_beyond_table(rows: pa.Table, schema: Schema) -> str | None:
    """The first key that its feature's table has no row for, in words; None where there is none.

    Args:
        rows: prepared rows; features that they lack are not looked at.
    """
    for name, feature in schema.features.items():
        if isinstance(feature, NumericFeature) or name not in rows.column_names:
            continue
        limit = key_limit(schema, name)
        for keys in _keys(rows.column(name)) if limit is not None else ():
            beyond = keys[(keys < 0) | (keys >= limit)]
            if len(beyond):
                if isinstance(feature, IdFeature) and feature.boundaries is not None:
                    return f"feature {name!r} holds bucket {beyond[0]}, but its boundaries make {limit} from 0 on"
                end = f"table {feature.table!r} has {limit + 1} rows, for ids from 0 to {limit - 1}"  # type: ignore[operator]
                return f"feature {name!r} holds id {beyond[0]}, but {end}"
    for name, table in schema.event_ids().items():
        sequence, _, column = name.partition(".")
        limit = key_limit(schema, name)
        if limit is None or sequence not in rows.column_names:
            continue
        keys = event_keys(rows.column(sequence), column).drop_null().to_numpy()
        beyond = keys[(keys < 0) | (keys >= limit)]
        if len(beyond):
            end = f"table {table!r} has {limit + 1} rows, for ids from 0 to {limit - 1}"
            return f"events {name!r} hold id {beyond[0]}, but {end}"
    return None


def _keys(column: pa.ChunkedArray) -> Iterator[np.ndarray]:
    """The keys of each chunk of a column of ids or of lists of them, int64; missing ones are left out."""
    for chunk in column.chunks:
        if isinstance(chunk, pa.ListArray):
            first, end = chunk.offsets[0].as_py(), chunk.offsets[-1].as_py()
            chunk = chunk.values.slice(first, end - first)
        yield (chunk.drop_null() if chunk.null_count else chunk).to_numpy(zero_copy_only=True)
