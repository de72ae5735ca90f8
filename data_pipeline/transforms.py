"""Raw rows to prepared rows: pure functions of one table, no loop over rows.

Columns come in the types of their file; `kinds` and `raw_values` know what they mean, `hashing` what the same id is.

- ids: the 64-bit key, of any integer or string where the table hashes ids, of an integer from 0 to rows - 2 where it
  keeps them in order; null, NaN and the empty string are null.
- bucketed numbers: the bucket's index; a value equal to a cut point belongs to the bucket above it; null and NaN are
  null.
- bags and sequences: missing elements are left out; of a sequence the newest `max_length` ids stay, oldest first.
- events in aligned columns: missing elements stay where they are (`events`).
- numerics: float32, `log1p` of max(x, 0) where declared; null and NaN are NaN.
- labels: 0 or 1; null and NaN are NaN where the task says `unknown: mask`, and a bad row elsewhere.
- user ids: an integer as it is, another string by its 64-bit hash.

A row that cannot be prepared is set aside with the first of the reasons below that holds.
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from itertools import chain

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from data_pipeline import kinds
from data_pipeline.events import BAD_FLAG, BAD_TIME, NOT_ALIGNED, NOT_BEFORE, prepare_events
from data_pipeline.groups import ORDER_FIELDS, Grouping
from data_pipeline.hashing import read_ids
from data_pipeline.manifest import prepared_columns
from data_pipeline.prepared_values import (
    BEYOND_TABLE,
    NOT_FINITE,
    NOT_WHOLE,
    OUT_OF_RANGE,
    bucket_keys,
    id_keys,
    numbers,
)
from data_pipeline.raw_values import floats, labels, milliseconds
from data_pipeline.sources import ROW_HASH
from rankmixer_dist.schema import (
    LABEL_PREFIX,
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
BAD_TIMESTAMP = "timestamp_not_whole_ms"
BAD_LABEL = "label_not_0_or_1"
NO_LABEL = "no_label_known"
DUPLICATE = "duplicate"
BAD_ROW_REASONS = (
    NO_USER_ID,
    NO_TIMESTAMP,
    BAD_TIMESTAMP,
    BAD_LABEL,
    OUT_OF_RANGE,
    BEYOND_TABLE,
    NOT_WHOLE,
    NOT_FINITE,
    NOT_ALIGNED,
    BAD_FLAG,
    BAD_TIME,
    NOT_BEFORE,
)
"""Reasons that `data.on_bad_row: fail` fails on; those outside the splits, duplicates and
rows without any known label are no one's mistake."""

REASON, DETAIL = "set_aside_reason", "set_aside_detail"


@dataclass(frozen=True)
class Prepared:
    """Good rows as `prepared_columns` (and `row_hash` where the raw table has one); the others raw, with why.

    Attributes:
        time_ms: int64, of all rows that have a time.
        in_splits: Rows with a user and a time in a split; the others are out before anybody looks at their labels.
        unknown_labels: Label column -> rows of these that are bad because it is null or NaN.
        beyond_table: Feature on an identity table -> rows of these that have an id which the table is too small for.
    """

    rows: pa.Table
    set_aside: pa.Table
    time_ms: np.ndarray
    in_splits: int
    unknown_labels: Mapping[str, int]
    beyond_table: Mapping[str, int]


def prepare(
    raw: pa.Table,
    schema: Schema,
    *,
    truth_columns: Mapping[str, str],
    time_ranges: Mapping[str, tuple[int, int]],
    grouping: Grouping | None = None,
) -> Prepared:
    """Prepares the rows of a raw table whose time lies in one of the splits' [start, end) ms ranges.

    Args:
        raw: Raw joined columns, in any row order; `check_columns` has accepted their types.
        truth_columns: Label column -> raw column of its true probability; used when it covers every task.
        grouping: Adds the columns that order groups (`groups.ORDER_FIELDS`).
    """
    faults = _Faults(raw.num_rows)
    users = read_ids(_column(raw, USER_ID))
    faults.add(NO_USER_ID, USER_ID, ~users.present)
    faults.add(NOT_WHOLE, USER_ID, users.faulty)
    time, timed, bad_time = milliseconds(_column(raw, TIMESTAMP))
    faults.add(NO_TIMESTAMP, TIMESTAMP, ~timed)
    faults.add(BAD_TIMESTAMP, TIMESTAMP, bad_time)
    inside = [(time >= start) & (time < end) for start, end in time_ranges.values()]
    faults.add(OUTSIDE, TIMESTAMP, ~np.any(inside, axis=0))
    columns: dict[str, pa.Array] = {
        ROW_ID: _column(raw, ROW_ID),
        USER_ID: pa.array(users.bits.view(np.int64)),
        TIMESTAMP: pa.array(time),
    }
    in_splits = ~faults.any
    refused: dict[str, int] = {}
    beyond_table: dict[str, int] = {}
    unlabelled = np.ones(raw.num_rows, dtype=bool)
    for task, name in schema.label_columns().items():
        label, wrong = labels(_column(raw, name))
        unknown = np.isnan(label) & ~wrong
        masked = unknown & (schema.tasks[task].unknown == "mask")
        faults.add(BAD_LABEL, name, wrong | (unknown & ~masked))
        refused[name] = int((unknown & ~masked & in_splits).sum())
        unlabelled &= masked
        columns[LABEL_PREFIX + task] = pa.array(label)
    faults.add(NO_LABEL, "", unlabelled)
    if has_truth(schema, truth_columns):
        for task, name in schema.label_columns().items():
            columns[TRUTH_PREFIX + task] = pa.array(floats(_column(raw, truth_columns[name])).astype(np.float32))
    for name, feature in schema.features.items():
        raw_name = feature.column or name
        columns[name], found = _feature(_column(raw, raw_name), feature, schema.tables)
        for reason, fault in found.items():
            faults.add(reason, raw_name, fault)
        if BEYOND_TABLE in found:
            beyond_table[name] = int((found[BEYOND_TABLE] & in_splits).sum())
    for name, sequence in schema.sequences.items():
        events = {each: _column(raw, each) for each in chain(*sequence.raw_columns().values())}
        columns[name], bad_events = prepare_events(events, sequence, schema.tables, time)
        for bad in bad_events:
            faults.add(bad.reason, bad.raw, bad.rows)
            if bad.reason == BEYOND_TABLE:
                beyond_table[f"{name}.{bad.column}"] = int((bad.rows & in_splits).sum())
    target = prepared_columns(schema, has_truth=has_truth(schema, truth_columns))
    if ROW_HASH in raw.column_names:
        columns[ROW_HASH] = _column(raw, ROW_HASH)
        target = target.append(pa.field(ROW_HASH, pa.int64(), nullable=False))
    if grouping is not None:
        # Equal rows have to come to one partition, where all but the first are dropped.
        alone = raw[ROW_HASH if ROW_HASH in raw.column_names else ROW_ID].to_numpy()
        columns |= grouping.columns(_column(raw, grouping.by), alone, time, time_ranges)
        target = pa.schema([*target, *ORDER_FIELDS])
    rows = pa.table(columns).filter(pa.array(~faults.any))
    times = time[timed & ~bad_time]
    return Prepared(rows.cast(target), faults.take(raw), times, int(in_splits.sum()), refused, beyond_table)


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

    def add(self, reason: str, detail: str, fault: np.ndarray) -> None:
        if fault.any():
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


def _feature(column: pa.Array, feature: Feature, tables: Mapping[str, Table]) -> tuple[pa.Array, dict[str, np.ndarray]]:
    """The prepared column, and by reason which rows cannot be prepared."""
    if isinstance(feature, NumericFeature):
        narrow, faults = numbers(column, feature.transform)
        return pa.array(narrow), faults
    table = tables[feature.table]
    if isinstance(feature, IdFeature):
        if feature.boundaries is not None:
            return bucket_keys(floats(column), feature.boundaries), {}
        keys, missing, faults = id_keys(column, table)
        return pa.array(keys, mask=missing), faults
    if isinstance(feature, MultiIdFeature) and feature.separator is not None and kinds.is_string(column.type):
        # White space as the pattern knows it, so that an id at an end is the same as one in the middle.
        column = pc.split_pattern_regex(pc.ascii_trim_whitespace(column), rf"\s*{re.escape(feature.separator)}\s*")
    newest = feature.max_length if isinstance(feature, SequenceFeature) else None
    return _lists(column, table, newest=newest)


def _lists(column: pa.Array, table: Table, *, newest: int | None) -> tuple[pa.Array, dict[str, np.ndarray]]:
    rows = len(column)
    if kinds.is_null(column.type):
        column = column.cast(pa.list_(pa.null()))
    lengths, values = kinds.flat(column)
    row = np.repeat(np.arange(rows), lengths)
    keys, missing, faults = id_keys(values, table)
    faulty = {reason: np.bincount(row[fault], minlength=rows) > 0 for reason, fault in faults.items()}
    keep = ~missing
    if newest is not None:
        kept = keep.cumsum()
        # How many kept ids of the same row come after each element.
        last = np.concatenate([[0], kept])[lengths.cumsum()]
        keep &= last[row] - kept < newest
    offsets = np.concatenate([[0], np.bincount(row[keep], minlength=rows).cumsum()])
    return pa.ListArray.from_arrays(pa.array(offsets.astype(np.int32)), pa.array(keys[keep])), faulty


def _column(raw: pa.Table, name: str) -> pa.Array:
    return kinds.decoded(raw[name].combine_chunks())
