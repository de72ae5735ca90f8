"""From Arrow tables to a `Batch`: every value is copied once, from the file's buffer to its place in the batch, where
keys become rows of tables."""

from collections.abc import Sequence
from itertools import pairwise

import numpy as np
import pyarrow as pa
import torch

from data_pipeline.table_rows import TableRows
from rankmixer_dist.batch import Batch, JaggedIds
from rankmixer_dist.schema import (
    LABEL_PREFIX,
    MISSING_ID,
    ROW_ID,
    TIMESTAMP,
    TRUTH_PREFIX,
    USER_ID,
    NumericFeature,
    Schema,
)

_Piece = dict[str, pa.Array]
"""Columns of some rows by name."""

PADDING_ID = -1
"""`row_id` and `user_id` of a padding row."""


class BatchAssembler:
    """Builds one rank's batches of a fixed number of rows.

    Args:
        rows: B, rows of every batch, padding included.
        with_truth: also fill `Batch.truth_BK`.
        pin_memory: page-locked tensors, which copy to a GPU in the background.
        keys_of: features with one id a row whose keys the batch keeps too, in `Batch.keys_BS`.
    """

    def __init__(
        self, schema: Schema, *, rows: int, with_truth: bool, pin_memory: bool, keys_of: Sequence[str] = ()
    ) -> None:
        self._rows = rows
        self._pin_memory = pin_memory
        self._labels = [LABEL_PREFIX + task for task in schema.tasks]
        self._truth = [TRUTH_PREFIX + task for task in schema.tasks] if with_truth else []
        self._numerics = list(schema.of_kind(NumericFeature))
        self._ids = schema.id_features()
        self._table_rows = TableRows(schema, self._ids)
        self._keys_of = keys_of

    def columns(self) -> list[str]:
        """Prepared columns that a batch is made from."""
        return [ROW_ID, USER_ID, TIMESTAMP, *self._labels, *self._truth, *self._numerics, *self._ids]

    def __call__(self, tables: Sequence[pa.Table], *, global_weight: float) -> Batch:
        """The batch of `tables`' rows in order, then padding up to `rows`.

        Raises:
            NoRowError: a feature holds a key that its table has no row for.
        """
        filled = sum(table.num_rows for table in tables)
        assert filled <= self._rows, f"{filled} rows for a batch of {self._rows}"
        weight = self._empty((self._rows,), torch.float32)
        weight.numpy()[:filled], weight.numpy()[filled:] = 1, 0
        # A column of a table takes several times as long to get as one of a record batch.
        pieces = [dict(zip(t.column_names, b.columns, strict=True)) for t in tables for b in t.to_batches()]
        return Batch(
            row_id_B=self._scalars(pieces, [ROW_ID], torch.int64, PADDING_ID)[:, 0],
            user_id_B=self._scalars(pieces, [USER_ID], torch.int64, PADDING_ID)[:, 0],
            timestamp_B=self._scalars(pieces, [TIMESTAMP], torch.int64, 0)[:, 0],
            weight_B=weight,
            labels_BK=self._scalars(pieces, self._labels, torch.float32, 0),
            numerics_BN=self._scalars(pieces, self._numerics, torch.float32, 0),
            ids=self._jagged(pieces),
            global_weight=global_weight,
            truth_BK=self._scalars(pieces, self._truth, torch.float32, 0) if self._truth else None,
            keys_BS=self._scalars(pieces, self._keys_of, torch.int64, 0) if self._keys_of else None,
            known_BS=self._known(pieces) if self._keys_of else None,
        )

    def _empty(self, shape: tuple[int, ...], dtype: torch.dtype) -> torch.Tensor:
        return torch.empty(shape, dtype=dtype, pin_memory=self._pin_memory)

    def _scalars(
        self, pieces: Sequence[_Piece], columns: Sequence[str], dtype: torch.dtype, padding: float
    ) -> torch.Tensor:
        """[rows, len(columns)] of columns that hold one value a row, `padding` where it is missing."""
        out = self._empty((self._rows, len(columns)), dtype)
        view = out.numpy()
        for place, column in enumerate(columns):
            row = 0
            for piece in pieces:
                values = piece[column]
                filled = values.fill_null(padding) if values.null_count else values
                view[row : row + len(values), place] = filled.to_numpy(zero_copy_only=True)
                row += len(values)
            view[row:, place] = padding
        return out

    def _known(self, pieces: Sequence[_Piece]) -> torch.Tensor:
        """bool [rows, len(keys_of)], false in padding rows."""
        out = self._empty((self._rows, len(self._keys_of)), torch.bool)
        view = out.numpy()
        view[:] = False
        for place, column in enumerate(self._keys_of):
            row = 0
            for piece in pieces:
                known = piece[column].is_valid().to_numpy(zero_copy_only=False)
                view[row : row + len(known), place] = known
                row += len(known)
        return out

    def _jagged(self, pieces: Sequence[_Piece]) -> JaggedIds:
        lengths = self._empty((len(self._ids), self._rows), torch.int32)
        lengths_view = lengths.numpy()
        parts: list[np.ndarray] = []
        missing: list[np.ndarray] = []
        ends = [0]
        taken = 0
        for place, feature in enumerate(self._ids):
            row = 0
            for piece in pieces:
                column = piece[feature]
                stop = row + len(column)
                if isinstance(column, pa.ListArray):
                    offsets = column.offsets.to_numpy(zero_copy_only=True)
                    np.subtract(offsets[1:], offsets[:-1], out=lengths_view[place, row:stop])
                    values = column.values.to_numpy(zero_copy_only=True)
                    parts.append(values[offsets[0] : offsets[-1]])
                else:
                    lengths_view[place, row:stop] = 1
                    if column.null_count:
                        keys, places = _with_nulls(column)
                        parts.append(keys)
                        missing.append(taken + places)
                    else:
                        parts.append(column.to_numpy(zero_copy_only=True))
                taken += len(parts[-1])
                row = stop
            lengths_view[place, row:] = 0
            ends.append(taken)
        values = self._empty((taken,), torch.int64)
        counts = tuple(end - start for start, end in pairwise(ends))
        if parts:
            keys = np.concatenate(parts, out=values.numpy())
            places = np.concatenate([np.empty(0, np.int64), *missing])
            keys[places] = 0  # a key that every table has a row for
            self._table_rows(keys, counts)
            keys[places] = MISSING_ID
        return JaggedIds(self._ids, values, lengths, counts)


def _with_nulls(column: pa.Int64Array) -> tuple[np.ndarray, np.ndarray]:
    """The values of a column without a copy, arbitrary where it is null, and the places where it is.

    A batch asks this of each piece of each feature; `fill_null` and `is_null` take four times as long.
    """
    valid, values = column.buffers()
    first, rows = column.offset, len(column)
    bits = np.unpackbits(np.frombuffer(valid, np.uint8)[first // 8 : (first + rows + 7) // 8], bitorder="little")
    places = np.flatnonzero(bits[first % 8 : first % 8 + rows] == 0)
    return np.frombuffer(values, np.int64, rows, 8 * first), places
