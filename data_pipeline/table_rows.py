"""From keys to rows of tables: what prepared data holds, and what a batch looks up.

Row 0 of every table stands for a missing id. Of the others

- a table of `ids: hash` takes key k to 1 + mix(mix(k) ^ hash of the table's salt) mod (rows - 1), so equal ids of two
  tables land on unrelated rows. A change that moves a key to another row has to raise `schema.ID_HASH`;
- a table of `ids: identity` takes key k to k + 1, and has no row for any other than 0 to rows - 2;
- a bucketed number takes bucket k to k + 1, whatever its table says of ids.
"""

from collections.abc import Sequence
from itertools import accumulate, groupby, pairwise

import numpy as np
import pyarrow as pa

from data_pipeline.hashing import BLOCK, hash_strings, mix_in_place
from data_pipeline.id_range import key_limit
from rankmixer_dist.errors import UserError
from rankmixer_dist.schema import MISSING_ID, NumericFeature, Schema

_ONE = np.array(1, np.uint64)


class NoRowError(UserError):
    """A key has no row in its feature's table."""


class TableRows:
    """Takes keys of features to rows of the features' tables.

    Args:
        features: whose keys follow each other in every call.
    """

    def __init__(self, schema: Schema, features: Sequence[str]) -> None:
        # Neighbours of one kind are taken together: a call of numpy costs as much as some hundred keys.
        self._runs: list[tuple[int, int, _Hashed | _Counted]] = []
        first = 0
        for hashed, run in groupby(features, key=lambda name: key_limit(schema, name) is None):
            names = [*run]
            kind = _Hashed if hashed else _Counted
            self._runs.append((first, first + len(names), kind(schema, names)))
            first += len(names)

    def __call__(self, keys: np.ndarray, counts: Sequence[int]) -> None:
        """Replaces the keys, int64 [sum of counts], by rows; `counts` of each feature in turn.

        Raises:
            NoRowError: a key has no row; some keys are rows already.
        """
        ends = [0, *accumulate(counts)]
        for first, last, to_rows in self._runs:
            start = ends[first]
            run = keys[start : ends[last]].view(np.uint64)
            if len(run):
                to_rows(run, [end - start for end in ends[first : last + 1]])


class _Hashed:
    """Of features whose tables hash ids."""

    def __init__(self, schema: Schema, features: Sequence[str]) -> None:
        tables = [schema.features[name].table for name in features]  # type: ignore[union-attr]
        # Arrays without a dimension, as in `hashing`.
        self._salts = [hash_strings(pa.array([schema.salt(table)])).reshape(()) for table in tables]
        self._buckets = [np.array(schema.tables[table].rows - 1, np.uint64) for table in tables]

    def __call__(self, keys: np.ndarray, ends: Sequence[int]) -> None:
        """Replaces keys, uint64 [N], of the features in turn, by rows; `ends` begins with 0."""
        spans = [keys[start:end] for start, end in pairwise(ends)]
        mix_in_place(keys)
        for span, salt in zip(spans, self._salts, strict=True):
            span ^= salt
        mix_in_place(keys)
        spare = np.empty(min(len(keys), BLOCK), np.uint64)
        for span, buckets in zip(spans, self._buckets, strict=True):
            for start in range(0, len(span), BLOCK):
                block = span[start : start + BLOCK]
                # The remainder by way of the quotient: numpy divides by one number several times as fast.
                whole = np.floor_divide(block, buckets, out=spare[: len(block)])
                whole *= buckets
                block -= whole
        keys += _ONE


class _Counted:
    """Of features whose keys are counted from 0: those of identity tables, and buckets."""

    def __init__(self, schema: Schema, features: Sequence[str]) -> None:
        self._features = features
        self._limits = [key_limit(schema, name) or 0 for name in features]

    def __call__(self, keys: np.ndarray, ends: Sequence[int]) -> None:
        """As of `_Hashed`; raises a `NoRowError` for a key that is not below its feature's limit."""
        held = [place for place, (start, end) in enumerate(pairwise(ends)) if start < end]
        # As an unsigned number a negative key is a huge one, so that one pass finds either.
        largest = np.maximum.reduceat(keys, [ends[place] for place in held]).tolist()
        for place, key in zip(held, largest, strict=True):
            if key >= self._limits[place]:
                signed = key - (1 << 64) if key >> 63 else key
                raise NoRowError(f"feature {self._features[place]!r} holds id {signed}, for which its table has no row")
        keys += _ONE


def with_table_rows(rows: pa.Table, schema: Schema) -> pa.Table:
    """Prepared rows with rows of tables in the place of keys, 0 for a missing id.

    Raises:
        NoRowError: a key has no row.
    """
    for place, (name, column) in enumerate(zip(rows.column_names, rows.columns, strict=True)):
        if isinstance(schema.features.get(name), NumericFeature | None):
            continue
        whole = column.combine_chunks()
        lists = isinstance(whole, pa.ListArray)
        keys = whole.flatten() if lists else whole
        found = keys.fill_null(0).to_numpy(zero_copy_only=False).copy()
        TableRows(schema, [name])(found, [len(found)])
        found[keys.is_null().to_numpy(zero_copy_only=False)] = MISSING_ID
        replaced = pa.array(found)
        if lists:
            offsets = whole.offsets.to_numpy()
            replaced = pa.ListArray.from_arrays(pa.array(offsets - offsets[0]), replaced)
        rows = rows.set_column(place, name, replaced)
    return rows
