"""Raw rows to prepared rows: pure functions of one table, no loop over rows.

- ids: `hash` tables take any integer or string to a row in [1, rows), `identity` tables take integer v to v + 1;
  null, and the empty string, are the missing id 0. A float column, as logs write integers with gaps, counts as
  integers, NaN as missing.
- bucketed numbers: bucket index + 1; a value equal to a cut point belongs to the bucket above it; null and NaN are 0.
- bags and sequences: null elements and empty strings are left out; of a sequence the newest `max_length` ids stay,
  oldest first.
- numerics: float32, `log1p` of max(x, 0) where declared; null and NaN are NaN.
- labels: 0 or 1; null and NaN are NaN where the task says `unknown: mask`, and a bad row elsewhere.

A row that cannot be prepared is set aside with the first of the reasons below that holds.
"""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from data_pipeline.hashing import hash_ids, hash_strings
from data_pipeline.manifest import prepared_columns
from data_pipeline.sources import ROW_HASH
from rankmixer_dist.schema import (
    LABEL_PREFIX,
    MISSING_ID,
    ROW_ID,
    TIMESTAMP,
    TRUTH_PREFIX,
    USER_ID,
    Feature,
    IdFeature,
    MultiIdFeature,
    NumericFeature,
    Schema,
    SequenceFeature,
    Table,
)

NO_USER_ID, NO_TIMESTAMP, OUTSIDE = "missing_user_id", "missing_timestamp", "outside_splits"
BAD_LABEL, BAD_ID = "label_not_0_or_1", "id_out_of_range"
NO_LABEL = "no_label_known"
NOT_WHOLE, NOT_FINITE = "id_not_whole", "numeric_not_finite"
DUPLICATE = "duplicate"
BAD_ROW_REASONS = (NO_USER_ID, NO_TIMESTAMP, BAD_LABEL, BAD_ID, NOT_WHOLE, NOT_FINITE)
"""Reasons that `data.on_bad_row: fail` fails on; those outside the splits, duplicates and
rows without any known label are no one's mistake."""

REASON, DETAIL = "set_aside_reason", "set_aside_detail"


@dataclass(frozen=True)
class Prepared:
    """Good rows as `prepared_columns` (and `row_hash` where the raw table has one); the others raw, with why."""

    rows: pa.Table
    set_aside: pa.Table


def prepare(
    raw: pa.Table, schema: Schema, *, truth_columns: Mapping[str, str], time_ranges: Sequence[tuple[int, int]]
) -> Prepared:
    """Prepares the rows of a raw table whose time lies in one of the [start, end) ms ranges.

    Args:
        raw: Raw joined columns, in any row order; `check_columns` has accepted its schema.
        truth_columns: Label column -> raw column of its true probability; used when it covers every task.
    """
    faults = _Faults(raw.num_rows)
    users, timestamps = _column(raw, USER_ID), _column(raw, TIMESTAMP)
    faults.add(NO_USER_ID, USER_ID, ~_present(users))
    faults.add(NO_TIMESTAMP, TIMESTAMP, ~_present(timestamps))
    time = _integers(timestamps)
    faults.add(OUTSIDE, TIMESTAMP, ~np.any([(time >= start) & (time < end) for start, end in time_ranges], axis=0))
    columns: dict[str, pa.Array] = {
        ROW_ID: _column(raw, ROW_ID),
        USER_ID: pa.array(_user_ids(users)),
        TIMESTAMP: pa.array(time),
    }
    unlabelled = np.ones(raw.num_rows, dtype=bool)
    for task, name in schema.label_columns().items():
        label = _floats(_column(raw, name))
        unknown = np.isnan(label) & (schema.tasks[task].unknown == "mask")
        faults.add(BAD_LABEL, name, (label != 0) & (label != 1) & ~unknown)
        unlabelled &= unknown
        columns[LABEL_PREFIX + task] = pa.array(label.astype(np.float32))
    faults.add(NO_LABEL, "", unlabelled)
    if has_truth(schema, truth_columns):
        for task, name in schema.label_columns().items():
            columns[TRUTH_PREFIX + task] = _column(raw, truth_columns[name]).cast(pa.float32())
    for name, feature in schema.features.items():
        raw_name = feature.column or name
        column = _column(raw, raw_name)
        if isinstance(feature, IdFeature) and feature.boundaries is None and pa.types.is_floating(column.type):
            column, not_whole = _whole(column)
            faults.add(NOT_WHOLE, raw_name, not_whole)
        columns[name], fault = _feature(column, feature, schema.tables)
        faults.add(NOT_FINITE if isinstance(feature, NumericFeature) else BAD_ID, raw_name, fault)
    target = prepared_columns(schema, has_truth=has_truth(schema, truth_columns))
    if ROW_HASH in raw.column_names:
        columns[ROW_HASH] = _column(raw, ROW_HASH)
        target = target.append(pa.field(ROW_HASH, pa.int64(), nullable=False))
    rows = pa.table(columns).filter(pa.array(~faults.any))
    return Prepared(rows=rows.cast(target), set_aside=faults.take(raw))


def has_truth(schema: Schema, truth_columns: Mapping[str, str]) -> bool:
    """Whether the true probability of every task is known."""
    return all(name in truth_columns for name in schema.label_columns().values())


@dataclass
class _Faults:
    """The first fault of each row, as an index into `kinds`; -1 while it has none."""

    rows: int
    kinds: list[tuple[str, str]] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.first = np.full(self.rows, -1, dtype=np.int32)

    def add(self, reason: str, detail: str, fault: np.ndarray | None) -> None:
        if fault is not None and fault.any():
            self.first[(self.first < 0) & fault] = len(self.kinds)
            self.kinds.append((reason, detail))

    @property
    def any(self) -> np.ndarray:
        return self.first >= 0

    def take(self, raw: pa.Table) -> pa.Table:
        """The faulty rows with their raw columns, behind them why."""
        kind = pa.array(self.first[self.any])
        faulty = raw.filter(pa.array(self.any))
        for name, position in ((REASON, 0), (DETAIL, 1)):
            words = pa.array([words[position] for words in self.kinds], type=pa.string())
            faulty = faulty.append_column(name, words.take(kind))
        return faulty


def _feature(column: pa.Array, feature: Feature, tables: Mapping[str, Table]) -> tuple[pa.Array, np.ndarray | None]:
    """The prepared column, and which rows cannot be prepared."""
    if isinstance(feature, NumericFeature):
        return _numeric(column, feature)
    table = tables[feature.table]
    if isinstance(feature, IdFeature):
        if feature.boundaries is not None:
            return pa.array(bucket_ids(_floats(column), feature.boundaries)), None
        ids, fault = _ids(column, feature.table, table)
        return pa.array(ids), fault
    if isinstance(feature, MultiIdFeature) and feature.separator is not None:
        column = pc.split_pattern_regex(pc.utf8_trim_whitespace(column), rf"\s*{re.escape(feature.separator)}\s*")
    newest = feature.max_length if isinstance(feature, SequenceFeature) else None
    return _lists(column, feature.table, table, newest=newest)


def _numeric(column: pa.Array, feature: NumericFeature) -> tuple[pa.Array, np.ndarray]:
    values = _floats(column)
    if feature.transform == "log1p":
        values = np.log1p(np.maximum(values, 0.0))
    with np.errstate(over="ignore"):
        narrow = values.astype(np.float32)
    return pa.array(narrow), np.isinf(narrow)


def bucket_ids(values: np.ndarray, boundaries: Sequence[float]) -> np.ndarray:
    """Index + 1 of each value's bucket, 0 for NaN; int64 [N] in [0, len(boundaries) + 1]."""
    buckets = np.searchsorted(np.asarray(boundaries, dtype=np.float64), values, side="right") + 1
    return np.where(np.isnan(values), MISSING_ID, buckets).astype(np.int64)


def _ids(values: pa.Array, name: str, table: Table) -> tuple[np.ndarray, np.ndarray | None]:
    """Table row of each value, 0 for a missing one, and which values lie outside an identity table."""
    present = _present(values)
    if table.ids == "hash":
        return np.where(present, hash_ids(values, table=table.salt or name, rows=table.rows), MISSING_ID), None
    raw = _integers(values)
    fault = present & ((raw < 0) | (raw >= table.rows - 1))
    return np.where(present & ~fault, raw + 1, MISSING_ID), fault


def _lists(column: pa.Array, name: str, table: Table, *, newest: int | None) -> tuple[pa.Array, np.ndarray | None]:
    rows = len(column)
    lengths = pc.fill_null(pc.list_value_length(column), 0).to_numpy(zero_copy_only=False).astype(np.int64)
    values = pc.list_flatten(column)
    row = np.repeat(np.arange(rows), lengths)
    ids, fault = _ids(values, name, table)
    faulty = None if fault is None else np.bincount(row[fault], minlength=rows) > 0
    keep = ids != MISSING_ID
    if newest is not None:
        kept = keep.cumsum()
        # How many kept ids of the same row come after each element.
        last = np.concatenate([[0], kept])[lengths.cumsum()]
        keep &= last[row] - kept < newest
    offsets = np.concatenate([[0], np.bincount(row[keep], minlength=rows).cumsum()])
    return pa.ListArray.from_arrays(pa.array(offsets.astype(np.int32)), pa.array(ids[keep])), faulty


def _column(raw: pa.Table, name: str) -> pa.Array:
    column = raw[name].combine_chunks()
    return column.dictionary_decode() if pa.types.is_dictionary(column.type) else column


def _present(values: pa.Array) -> np.ndarray:
    present = values.is_valid()
    if _is_text(values.type):
        present = pc.and_(present, pc.fill_null(pc.not_equal(values, pa.scalar("", values.type)), False))
    return present.to_numpy(zero_copy_only=False)


def _is_text(kind: pa.DataType) -> bool:
    return pa.types.is_string(kind) or pa.types.is_large_string(kind)


def _whole(values: pa.Array) -> tuple[pa.Array, np.ndarray]:
    """Floats as integers, NaN as null, and which of them are not whole."""
    floats = _floats(values)
    # 2**53: beyond it a float no longer tells neighbouring integers apart.
    whole = (np.abs(floats) <= 2**53) & (np.floor(floats) == floats)
    integers = np.where(whole, floats, 0).astype(np.int64)
    return pa.array(integers, mask=~whole), ~whole & ~np.isnan(floats)


def _integers(values: pa.Array) -> np.ndarray:
    """int64 [N], nulls as -1."""
    return pc.fill_null(values.cast(pa.int64(), safe=False), -1).to_numpy(zero_copy_only=False)


def _floats(values: pa.Array) -> np.ndarray:
    """float64 [N], nulls as NaN."""
    return pc.fill_null(values.cast(pa.float64()), float("nan")).to_numpy(zero_copy_only=False)


def _user_ids(users: pa.Array) -> np.ndarray:
    """Integers as they are, strings as their 64-bit hash; int64 [N]."""
    return hash_strings(users).view(np.int64) if _is_text(users.type) else _integers(users)
