"""Whether every id of prepared rows is a row of its table, told on the host.

On a GPU the lookup itself can only abort with an assert of the device, after which nothing can be saved or told.
"""

from collections.abc import Iterator

import numpy as np
import pyarrow as pa

from rankmixer_dist.schema import NumericFeature, Schema


def id_beyond_table(rows: pa.Table, schema: Schema) -> str | None:
    """The first id that its feature's table has no row for, in words; None where there is none.

    Args:
        rows: prepared rows; features that they lack are not looked at.
    """
    for name, feature in schema.features.items():
        if isinstance(feature, NumericFeature) or name not in rows.column_names:
            continue
        table_rows = schema.tables[feature.table].rows
        for ids in _ids(rows.column(name)):
            # As an unsigned number a negative id is a huge one, so that one pass finds either.
            if len(ids) and int(ids.view(np.uint64).max()) >= table_rows:
                found = ids[(ids < 0) | (ids >= table_rows)][0]
                return f"feature {name!r} holds id {found}, but table {feature.table!r} has {table_rows} rows"
    return None


def _ids(column: pa.ChunkedArray) -> Iterator[np.ndarray]:
    """The ids of each chunk of a column of ids or of lists of them, int64, without a copy."""
    for chunk in column.chunks:
        if isinstance(chunk, pa.ListArray):
            first, end = chunk.offsets[0].as_py(), chunk.offsets[-1].as_py()
            chunk = chunk.values.slice(first, end - first)
        yield chunk.to_numpy(zero_copy_only=True)
