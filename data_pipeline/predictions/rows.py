"""Rows of predictions: read a piece at a time, and checked, so that a row that makes no sense is named."""

import itertools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from numpy.typing import NDArray

from data_pipeline import kinds
from data_pipeline.hashing import hash_strings, mix
from data_pipeline.predictions.files import Columns
from data_pipeline.sources import Unit
from rankmixer_dist.errors import UserError, one_line
from rankmixer_dist.metrics.rows import WEIGHTS_ARE, is_weight

MOST_ROWS = 1 << 17
_READ_BYTES = 1 << 20


@dataclass(frozen=True)
class Piece:
    """Some rows of a row group, the first of which is row `first_row` in it."""

    unit: Unit
    first_row: int
    batch: pa.RecordBatch

    def refuse(self, name: str, bad: NDArray[np.bool_], values: NDArray | None, mend: str) -> None:
        """Raises a `UserError` that names the first bad row, if any is; `values` None stands for nulls."""
        if bad.any():
            row = int(np.argmax(bad))
            value = "null" if values is None else values[row]
            where = f"{self.unit.path}: row group {self.unit.row_group}, row {self.first_row + row} (from 0)"
            raise UserError(f"{where}: column {name!r} is {value}; {mend}")


def pieces(units: Sequence[Unit], columns: Columns, most: int) -> Iterator[Piece]:
    """The rows of row groups, at most so many at a time.

    Raises:
        UserError: bytes that cannot be read.
    """
    for path, own in itertools.groupby(units, key=lambda unit: unit.path):
        group: int | None = None
        try:
            # Pages are read as they are needed: a row group may be larger than memory.
            with pq.ParquetFile(path, buffer_size=_READ_BYTES, pre_buffer=False) as file:
                for unit in own:
                    group, first_row = unit.row_group, 0
                    for batch in file.iter_batches(
                        min(most, MOST_ROWS), row_groups=[group], columns=columns.names, use_threads=False
                    ):
                        yield Piece(unit, first_row, batch)
                        first_row += batch.num_rows
                    if first_row != unit.rows:
                        raise UserError(f"{path}: row group {group} has {first_row} rows, not {unit.rows}; {_REWRITE}")
        except (OSError, pa.ArrowException) as error:
            where = "" if group is None else f"row group {group} "
            raise UserError(f"{path}: {where}cannot be read; {_REWRITE}: {one_line(error)}") from error


_REWRITE = "write the file again or remove it"


def checked_rows(piece: Piece, columns: Columns) -> Iterator[tuple[str, dict[str, NDArray]]]:
    """Each task and its rows that have a label, as columns that metric states take.

    Raises:
        UserError: the first row that makes no sense.
    """
    users = _users(piece, columns.user)
    weights = None if columns.weight is None else _weights(piece, columns.weight)
    for task, (label, score) in columns.tasks.items():
        scores, labels = _scores(piece, score), _numbers(piece, label)
        known = ~np.isnan(labels)
        mend = "a label is 0 or 1, or null or NaN where it is not known"
        piece.refuse(label, known & (labels != 0) & (labels != 1), labels, mend)
        rows = {"scores": scores, "labels": labels == 1, "user_ids": users}
        if weights is not None:
            rows["weights"] = weights
        yield task, rows if known.all() else {name: column[known] for name, column in rows.items()}


def _users(piece: Piece, name: str) -> NDArray[np.int64]:
    """User ids; strings, bytes and unsigned ones as 64 bits that stand for them."""
    column = kinds.decoded(piece.batch.column(name))
    if column.null_count:
        piece.refuse(name, _nulls(column), None, "every row needs its user")
    if not pa.types.is_integer(column.type):
        return mix(hash_strings(column)).view(np.int64)
    wide = column if column.type == pa.uint64() else column.cast(pa.int64())
    return wide.to_numpy(zero_copy_only=False).view(np.int64)


def _scores(piece: Piece, name: str) -> NDArray[np.floating]:
    column = piece.batch.column(name)
    if column.null_count:
        piece.refuse(name, _nulls(column), None, "every row needs a score")
    scores = column.to_numpy(zero_copy_only=False)
    if scores.dtype == np.float16:
        scores = scores.astype(np.float32)
    mend = "a score is a probability in [0, 1]; mend the rows, or leave them out"
    piece.refuse(name, ~((scores >= 0) & (scores <= 1)), scores, mend)
    return scores


def _weights(piece: Piece, name: str) -> NDArray[np.float64]:
    weights = _numbers(piece, name)
    piece.refuse(name, ~is_weight(weights), weights, f"a weight is {WEIGHTS_ARE}; multiply all by one number")
    return weights


def _numbers(piece: Piece, name: str) -> NDArray[np.float64]:
    """As float64, nulls as NaN."""
    column = piece.batch.column(name)
    if pa.types.is_boolean(column.type):
        column = column.cast(pa.uint8())
    return column.cast(pa.float64(), safe=False).to_numpy(zero_copy_only=False)


def _nulls(column: pa.Array) -> NDArray[np.bool_]:
    return pc.is_null(column).to_numpy(zero_copy_only=False)
