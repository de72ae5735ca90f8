"""From Arrow tables to a `Batch`: every value is copied once, from the file's buffer to its place in the batch."""

from collections.abc import Sequence

import numpy as np
import pyarrow as pa
import torch

from rankmixer_dist.batch import Batch, JaggedIds
from rankmixer_dist.schema import LABEL_PREFIX, ROW_ID, TIMESTAMP, TRUTH_PREFIX, USER_ID, NumericFeature, Schema

PADDING_ID = -1
"""`row_id` and `user_id` of a padding row."""


class BatchAssembler:
    """Builds one rank's batches of a fixed number of rows.

    Args:
        rows: B, rows of every batch, padding included.
        with_truth: also fill `Batch.truth_BK`.
        pin_memory: page-locked tensors, which copy to a GPU in the background.
    """

    def __init__(self, schema: Schema, *, rows: int, with_truth: bool, pin_memory: bool) -> None:
        self._rows = rows
        self._pin_memory = pin_memory
        self._labels = [LABEL_PREFIX + task for task in schema.tasks]
        self._truth = [TRUTH_PREFIX + task for task in schema.tasks] if with_truth else []
        self._numerics = list(schema.of_kind(NumericFeature))
        self._ids = schema.id_features()

    def columns(self) -> list[str]:
        """Prepared columns that a batch is made from."""
        return [ROW_ID, USER_ID, TIMESTAMP, *self._labels, *self._truth, *self._numerics, *self._ids]

    def __call__(self, tables: Sequence[pa.Table], *, global_weight: float) -> Batch:
        """The batch of `tables`' rows in order, then padding up to `rows`."""
        filled = sum(table.num_rows for table in tables)
        assert filled <= self._rows, f"{filled} rows for a batch of {self._rows}"
        weight = self._empty((self._rows,), torch.float32)
        weight[:filled], weight[filled:] = 1, 0
        return Batch(
            row_id_B=self._scalars(tables, [ROW_ID], torch.int64, PADDING_ID)[:, 0],
            user_id_B=self._scalars(tables, [USER_ID], torch.int64, PADDING_ID)[:, 0],
            timestamp_B=self._scalars(tables, [TIMESTAMP], torch.int64, 0)[:, 0],
            weight_B=weight,
            labels_BK=self._scalars(tables, self._labels, torch.float32, 0),
            numerics_BN=self._scalars(tables, self._numerics, torch.float32, 0),
            ids=self._jagged(tables),
            global_weight=global_weight,
            truth_BK=self._scalars(tables, self._truth, torch.float32, 0) if self._truth else None,
        )

    def _empty(self, shape: tuple[int, ...], dtype: torch.dtype) -> torch.Tensor:
        return torch.empty(shape, dtype=dtype, pin_memory=self._pin_memory)

    def _scalars(
        self, tables: Sequence[pa.Table], columns: Sequence[str], dtype: torch.dtype, padding: float
    ) -> torch.Tensor:
        """[rows, len(columns)] of columns that hold one value a row."""
        out = self._empty((self._rows, len(columns)), dtype)
        view = out.numpy()
        for place, column in enumerate(columns):
            row = 0
            for table in tables:
                for chunk in table.column(column).chunks:
                    view[row : row + len(chunk), place] = chunk.to_numpy(zero_copy_only=True)
                    row += len(chunk)
            view[row:, place] = padding
        return out

    def _jagged(self, tables: Sequence[pa.Table]) -> JaggedIds:
        lengths = self._empty((len(self._ids), self._rows), torch.int32)
        lengths_view = lengths.numpy()
        pieces: list[np.ndarray] = []
        for place, feature in enumerate(self._ids):
            row = 0
            for table in tables:
                for chunk in table.column(feature).chunks:
                    stop = row + len(chunk)
                    if isinstance(chunk, pa.ListArray):
                        offsets = chunk.offsets.to_numpy(zero_copy_only=True)
                        np.subtract(offsets[1:], offsets[:-1], out=lengths_view[place, row:stop])
                        values = chunk.values.to_numpy(zero_copy_only=True)
                        pieces.append(values[offsets[0] : offsets[-1]])
                    else:
                        lengths_view[place, row:stop] = 1
                        pieces.append(chunk.to_numpy(zero_copy_only=True))
                    row = stop
            lengths_view[place, row:] = 0
        values = self._empty((sum(map(len, pieces)),), torch.int64)
        if pieces:
            np.concatenate(pieces, out=values.numpy())
        return JaggedIds.on_host(self._ids, values, lengths)
