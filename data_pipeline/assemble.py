"""From Arrow tables to batches: the rows of several steps become tensors at once, and each step's are views of them.

Keys become rows of tables on the way. What a column costs beside its values, some microseconds of Python, is paid once
for all steps: a rank of 64 has 32 rows of a batch of 2,048.
"""

from collections.abc import Sequence

import numpy as np
import pyarrow as pa
import torch

from data_pipeline.groups import UserSide
from data_pipeline.shared_side import Shared, SharedSide
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

_Columns = dict[str, pa.Array]
"""Columns of all rows by name; empty where there are no rows."""

PADDING_ID = -1
"""`row_id` and `user_id` of a padding row."""


class BatchAssembler:
    """Builds one rank's batches of a fixed number of rows.

    Args:
        rows: B, rows of every batch, padding included.
        with_truth: also fill `Batch.truth_BK`.
        pin_memory: page-locked tensors, which copy to a GPU in the background.
        keys_of: features with one id a row whose keys the batch keeps too, in `Batch.keys_BS`.
        side: what groups of rows share, where the tables hold it once a group. Its ids ride on a group's first row.
    """

    def __init__(
        self,
        schema: Schema,
        *,
        rows: int,
        with_truth: bool,
        pin_memory: bool,
        keys_of: Sequence[str] = (),
        side: UserSide | None = None,
    ) -> None:
        self._rows = rows
        self._pin_memory = pin_memory
        self._labels = [LABEL_PREFIX + task for task in schema.tasks]
        self._truth = [TRUTH_PREFIX + task for task in schema.tasks] if with_truth else []
        self._numerics = list(schema.of_kind(NumericFeature))
        self._ids = schema.id_features()
        self._table_rows = TableRows(schema, self._ids)
        self._keys_of = keys_of
        self._side = SharedSide(self._ids, side, rows=rows) if side else None

    def columns(self) -> list[str]:
        """Prepared columns that a batch is made from."""
        return [ROW_ID, USER_ID, TIMESTAMP, *self._labels, *self._truth, *self._numerics, *self._ids]

    def __call__(self, tables: Sequence[pa.Table], *, global_weight: float) -> Batch:
        """The batch of `tables`' rows in order, then padding up to `rows`; raises as `steps` does."""
        return self.steps(tables, global_weights=[global_weight])[0]

    def steps(self, tables: Sequence[pa.Table], *, global_weights: Sequence[float]) -> list[Batch]:
        """The batches of `tables`' rows in order, `rows` in each; the last ones end in padding.

        Where rows are grouped, each table begins a group, and so does each batch.

        Args:
            global_weights: of each batch.

        Raises:
            NoRowError: a feature holds a key that its table has no row for.
        """
        steps = len(global_weights)
        filled = sum(table.num_rows for table in tables)
        assert filled <= steps * self._rows, f"{filled} rows for {steps} batches of {self._rows}"
        # A column of a table takes several times as long to get as one of a record batch.
        found = pa.concat_tables(tables).combine_chunks().to_batches() if filled else []
        columns: _Columns = dict(zip(found[0].schema.names, found[0].columns, strict=True)) if found else {}
        shared = self._side.find(columns) if self._side is not None and columns else None
        alone = columns if shared is None else {**columns, **shared.each_row}
        weight = self._empty((steps * self._rows,), torch.float32)
        weight.numpy()[:filled], weight.numpy()[filled:] = 1, 0

        def each(names: Sequence[str], dtype: torch.dtype, padding: float) -> Sequence[torch.Tensor]:
            return self._cut(self._scalars(alone, names, dtype, padding, steps * self._rows))

        def one(name: str, padding: int) -> Sequence[torch.Tensor]:
            return self._cut(self._scalars(alone, [name], torch.int64, padding, steps * self._rows)[:, 0])

        none = [None] * steps
        of_steps = zip(
            one(ROW_ID, PADDING_ID),
            one(USER_ID, PADDING_ID),
            one(TIMESTAMP, 0),
            self._cut(weight),
            each(self._labels, torch.float32, 0),
            each(self._numerics, torch.float32, 0),
            self._jagged(columns, filled, steps, shared),
            global_weights,
            each(self._truth, torch.float32, 0) if self._truth else none,
            each(self._keys_of, torch.int64, 0) if self._keys_of else none,
            self._cut(self._known(alone, steps * self._rows)) if self._keys_of else none,
            strict=True,
        )
        return [Batch(*fields) for fields in of_steps]

    def _empty(self, shape: tuple[int, ...], dtype: torch.dtype) -> torch.Tensor:
        return torch.empty(shape, dtype=dtype, pin_memory=self._pin_memory)

    def _cut(self, all_rows: torch.Tensor) -> Sequence[torch.Tensor]:
        """Of [steps * rows, ...], the rows of each step."""
        return all_rows.view(len(all_rows) // self._rows, self._rows, *all_rows.shape[1:]).unbind()

    def _scalars(
        self, columns: _Columns, names: Sequence[str], dtype: torch.dtype, padding: float, rows: int
    ) -> torch.Tensor:
        """[rows, len(names)] of columns that hold one value a row, `padding` where it is missing."""
        out = self._empty((rows, len(names)), dtype)
        view = out.numpy()
        for place, name in enumerate(names):
            filled = 0
            if columns:
                values = columns[name].fill_null(padding) if columns[name].null_count else columns[name]
                filled = len(values)
                view[:filled, place] = values.to_numpy(zero_copy_only=True)
            view[filled:, place] = padding
        return out

    def _known(self, columns: _Columns, rows: int) -> torch.Tensor:
        """bool [rows, len(keys_of)], false in padding rows."""
        out = self._empty((rows, len(self._keys_of)), torch.bool)
        view = out.numpy()
        view[:] = False
        for place, name in enumerate(self._keys_of):
            if columns:
                known = columns[name].is_valid().to_numpy(zero_copy_only=False)
                view[: len(known), place] = known
        return out

    def _jagged(self, columns: _Columns, filled: int, steps: int, shared: Shared | None) -> list[JaggedIds]:
        """The ids of each step; all steps' become rows of tables together."""
        lengths = self._empty((steps, len(self._ids), self._rows), torch.int32)
        lengths_view = lengths.numpy()
        counts_FS = np.zeros((len(self._ids), steps), np.int64)
        bounds = np.minimum(np.arange(steps + 1) * self._rows, filled)
        of_rows = np.zeros(steps * self._rows, np.int32)
        parts: list[np.ndarray] = []
        missing: list[np.ndarray] = []
        taken = 0
        for place, feature in enumerate(self._ids if columns else ()):
            column, of_held, steps_at = columns[feature], of_rows[:filled], bounds
            rides = shared is not None and feature in shared.riding
            if shared is not None and rides:
                column, of_held = shared.riding[feature], np.empty(len(shared.at), np.int32)
                steps_at = np.searchsorted(shared.at, bounds)
            if isinstance(column, pa.ListArray):
                offsets = column.offsets.to_numpy(zero_copy_only=True)
                np.subtract(offsets[1:], offsets[:-1], out=of_held)
                counts_FS[place] = np.diff(offsets[steps_at])
                parts.append(column.values.to_numpy(zero_copy_only=True)[offsets[0] : offsets[-1]])
            else:
                of_held[:] = 1
                counts_FS[place] = np.diff(steps_at)
                if column.null_count:
                    keys, places = _with_nulls(column)
                    parts.append(keys)
                    missing.append(taken + places)
                else:
                    parts.append(column.to_numpy(zero_copy_only=True))
            if shared is not None and rides:
                of_rows[:] = 0
                of_rows[shared.at] = of_held
            lengths_view[:, place] = of_rows.reshape(steps, self._rows)
            taken += len(parts[-1])
        if not columns:
            lengths_view[:] = 0
        values = self._empty((taken,), torch.int64)
        keys = values.numpy() if steps == 1 else np.empty(taken, np.int64)
        if parts:
            np.concatenate(parts, out=keys)
            places = np.concatenate([np.empty(0, np.int64), *missing])
            keys[places] = 0  # a key that every table has a row for
            self._table_rows(keys, counts_FS.sum(axis=1).tolist())
            keys[places] = MISSING_ID
        if steps > 1:
            # `clip` takes into `out` itself, while `raise` takes into a copy of it.
            np.take(keys, _by_step(counts_FS), out=values.numpy(), mode="clip")
        of_steps = values.split(counts_FS.sum(axis=0).tolist()), lengths.unbind(), map(tuple, counts_FS.T.tolist())
        groups = self._side.groups(shared, steps, self._empty) if self._side is not None else [None] * steps
        return [JaggedIds(self._ids, *found) for found in zip(*of_steps, groups, strict=True)]


def _by_step(counts_FS: np.ndarray) -> np.ndarray:
    """Where the ids of step 0 lie, feature by feature, then those of step 1, among ids that lie feature by feature.

    Args:
        counts_FS: ids of feature f in step s. A slice for each takes as long as 60 ids, and many have 32.
    """
    ends = np.cumsum(counts_FS).reshape(counts_FS.shape)
    moved = counts_FS.T.ravel()
    places = np.arange(moved.sum())
    places += np.repeat((ends - counts_FS).T.ravel() - (np.cumsum(moved) - moved), moved)
    return places


def _with_nulls(column: pa.Int64Array) -> tuple[np.ndarray, np.ndarray]:
    """The values of a column without a copy, arbitrary where it is null, and the places where it is.

    `fill_null` and `is_null` take four times as long for some hundred rows.
    """
    valid, values = column.buffers()
    first, rows = column.offset, len(column)
    bits = np.unpackbits(np.frombuffer(valid, np.uint8)[first // 8 : (first + rows + 7) // 8], bitorder="little")
    places = np.flatnonzero(bits[first % 8 : first % 8 + rows] == 0)
    return np.frombuffer(values, np.int64, rows, 8 * first), places
