"""Rows of one user side: how they come to stand together, how what they share is written once, and how it is read back.

A group is rows of one id (`data.group.by`) in one window of time. Prepared rows stand in order of (window, group, time,
row), so that a group's rows follow each other. What the user side holds stands in the first row of a group, where
`group_start` is true; the other rows have null, NaN or an empty list there.

A user's events are written once a group: all that any of its rows may see, oldest first. `visible_<feature>` says how
many of them, from the oldest on, a row may see; of these it reads the newest `max_length`.

A new group begins wherever a user-side value changes, where a row's events are not its predecessor's with newer ones
behind them, and with every row group, so that a reader of one row group needs no other.
"""

import json
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import pyarrow as pa

from data_pipeline.hashing import mix, read_ids
from rankmixer_dist.schema import GROUP_START, Schema, SequenceFeature

WINDOW, KEY = " group_window", " group_key"
"""Columns of a row on its way to a shard: the first ms of its window, and its group in it. No feature's name begins
with a blank."""

UserSide = Mapping[str, int | None]
"""User-side column -> how many of the events that it may see a row reads, None where it holds no events."""

_METADATA = b"rankmixer_dist.user_side"
_MOST_NEW = 128
"""Events by which a row's list is looked for behind its predecessor's; with more new ones a group begins."""
_NO_GROUP = np.uint64(0x67726F7570)


def user_side(schema: Schema) -> UserSide:
    """The user side of a schema's rows."""
    features = schema.features
    newest = {name: feature.max_length for name, feature in features.items() if isinstance(feature, SequenceFeature)}
    newest |= {name: sequence.max_length for name, sequence in schema.sequences.items()}
    return {name: newest.get(name) for name in schema.user_side()}


def visible(name: str) -> str:
    """The column that says how many of its group's events a row may see."""
    return f"visible_{name}"


def group_fields(side: UserSide) -> list[pa.Field]:
    """Columns that grouped rows have behind those of all prepared rows."""
    events = [
        pa.field(visible(name), pa.int32(), nullable=False) for name, newest in side.items() if newest is not None
    ]
    return [pa.field(GROUP_START, pa.bool_(), nullable=False), *events]


def side_metadata(side: UserSide) -> dict[bytes, bytes]:
    """What a shard of grouped rows says of itself in its Parquet metadata."""
    return {_METADATA: json.dumps(dict(side)).encode()}


def side_of(metadata: Mapping[bytes, bytes] | None) -> UserSide:
    """The user side of a shard by its Parquet metadata; empty where its rows are not grouped.

    Raises:
        pa.ArrowInvalid: it is not what `side_metadata` gives.
    """
    try:
        side = json.loads((metadata or {}).get(_METADATA, b"{}"))
    except (ValueError, RecursionError):
        side = None
    if not isinstance(side, dict) or not all(
        each is None or (type(each) is int and each > 0) for each in side.values()
    ):
        raise pa.ArrowInvalid(f"{_METADATA.decode()} in its Parquet metadata is not whole")
    return side


@dataclass(frozen=True)
class Grouping:
    """Which rows are a group.

    Attributes:
        by: Raw column of ids.
        window_ms: Time that a group spans at most, counted from its split's start; None where it is the whole split.
        side: What the rows of a group share.
    """

    by: str
    window_ms: int | None
    side: UserSide

    def columns(
        self, ids: pa.Array, alone: np.ndarray, time: np.ndarray, ranges: Mapping[str, tuple[int, int]]
    ) -> dict[str, pa.Array]:
        """`WINDOW` and `KEY` of rows.

        A row in no split has window 0. A row without an id is a group of its own, with those that are equal to it.

        Args:
            alone: int64, what differs between rows that are not equal.
        """
        window = np.zeros(len(time), np.int64)
        for start, end in ranges.values():
            inside = (time >= start) & (time < end)
            since = time[inside] - start
            window[inside] = start if self.window_ms is None else start + since // self.window_ms * self.window_ms
        found = read_ids(ids)
        key = np.where(found.present, mix(found.bits), mix(alone.view(np.uint64) ^ _NO_GROUP))
        return {WINDOW: pa.array(window), KEY: pa.array(key.view(np.int64))}


ORDER_FIELDS = [pa.field(WINDOW, pa.int64(), nullable=False), pa.field(KEY, pa.int64(), nullable=False)]


def fold(rows: pa.Table, side: UserSide, *, row_group_rows: int) -> tuple[pa.Table, Counter[str]]:
    """Rows with `WINDOW` and `KEY`, which their order follows, as they stand in a shard of such row groups.

    Returns:
        The rows, and by user-side column, how many of them begin a group because of it.
    """
    begins = np.arange(rows.num_rows) % row_group_rows == 0
    for name in (WINDOW, KEY):
        begins |= _differs(_whole(rows, name))
    start = begins.copy()
    added: dict[str, np.ndarray] = {}
    changes: Counter[str] = Counter()
    for name, newest in side.items():
        column = _whole(rows, name)
        if newest is None:
            differs = _differs(column)
        else:
            differs, added[name] = _new_events(column, newest)
        changes[name] = int((differs & ~begins).sum())
        start |= differs
    fields = {field.name: field for field in rows.schema}
    group = start.cumsum() - 1
    shown = {}
    for name in side:
        column = _whole(rows, name)
        if name in added:
            added[name][start] = _lengths(column)[start]
            total = added[name].cumsum()
            before = (total - added[name])[start]
            shown[visible(name)] = pa.array((total - before[group]).astype(np.int32))
            column = _tails(column, added[name], start)
        else:
            column = _only(column, start)
        rows = rows.set_column(rows.schema.get_field_index(name), fields[name], column)
    rows = rows.drop_columns([WINDOW, KEY])
    for field in group_fields(side):
        rows = rows.append_column(field, shown.get(field.name, pa.array(start)))
    return rows, +changes


def check_folded(rows: pa.Table, side: UserSide) -> None:
    """Makes sure that rows begin with a group, and that none sees more events than its group has.

    Raises:
        pa.ArrowInvalid: they are not what `fold` gives.
    """
    first = first_rows(_whole(rows, GROUP_START))
    for name, newest in side.items():
        if newest is not None and name in rows.column_names:
            shown, events = _whole(rows, visible(name)).to_numpy(), _whole(rows, name)
            if not isinstance(events, pa.ListArray):
                raise pa.ArrowInvalid(f"column {name!r} holds no events")
            if ((shown < 0) | (shown > _lengths(events)[first])).any():
                raise pa.ArrowInvalid("a row sees more events than its group has")
            if (shown[1:] < shown[:-1])[first[1:] == first[:-1]].any():
                raise pa.ArrowInvalid("a row sees fewer events than the row before")


def cut(rows: pa.Table, side: UserSide, first: int, count: int) -> pa.Table:
    """`count` folded rows from row `first` on, which begins a group even where it is within one."""
    starts = rows[GROUP_START]
    if starts[first].as_py():
        return rows.slice(first, count)
    begun = first
    while not starts[begun].as_py():
        begun -= 1
    columns = [rows[name].slice(begun if name in side else first, 1) for name in rows.column_names]
    columns[rows.column_names.index(GROUP_START)] = pa.chunked_array([pa.array([True])])
    return pa.concat_tables([pa.table(columns, schema=rows.schema), rows.slice(first + 1, count - 1)])


def unfold(rows: pa.Table, side: UserSide) -> pa.Table:
    """Rows as they would stand without groups; raises as `check_folded` does."""
    check_folded(rows, side)
    columns = [name for name in rows.column_names if name in side]
    first = first_rows(_whole(rows, GROUP_START))
    for name in columns:
        column = _whole(rows, name)
        newest = side[name]
        if newest is None:
            column = column.take(pa.array(first))
        else:
            column = _seen(column, first, _whole(rows, visible(name)).to_numpy().astype(np.int64), newest)
        rows = rows.set_column(rows.schema.get_field_index(name), rows.schema.field(name), column)
    return rows.drop_columns([field.name for field in group_fields(side) if field.name in rows.column_names])


def first_rows(start: pa.BooleanArray) -> np.ndarray:
    """The row that begins each row's group, int64 [N]; raises `pa.ArrowInvalid` where the first row begins none."""
    begins = start.to_numpy(zero_copy_only=False)
    if len(begins) and not begins[0]:
        raise pa.ArrowInvalid("its first row begins no group")
    return np.maximum.accumulate(np.where(begins, np.arange(len(begins)), 0)) if len(begins) else np.zeros(0, np.int64)


def items_of(column: pa.ListArray, rows: np.ndarray, first: np.ndarray, counts: np.ndarray) -> pa.ListArray:
    """Of the lists in `rows`, int64 [P], `counts` items from the one in place `first` on."""
    begins = column.offsets.to_numpy().astype(np.int64)[rows] + first
    return _list_array(column, counts, column.values.take(pa.array(_runs(begins, counts))))


def _seen(column: pa.ListArray, first: np.ndarray, shown: np.ndarray, newest: int) -> pa.ListArray:
    """What each row reads of its group's events."""
    counts = np.minimum(shown, newest)
    return items_of(column, first, shown - counts, counts)


def _differs(column: pa.Array) -> np.ndarray:
    """Which rows hold another value than their predecessor, bool [N]; the first one does."""
    found = np.ones(len(column), bool)
    if isinstance(column, pa.ListArray):
        lengths, offsets = _lengths(column), column.offsets.to_numpy().astype(np.int64)
        alike = lengths[1:] == lengths[:-1]
        alike[alike] = _equal(_bits(column.values), offsets[:-2][alike], offsets[1:-1][alike], lengths[1:][alike])
        found[1:] = ~alike
    else:
        found[1:] = np.logical_or.reduce([bits[1:] != bits[:-1] for bits in _bits(column)])
    return found


def _new_events(column: pa.ListArray, newest: int) -> tuple[np.ndarray, np.ndarray]:
    """Which rows' events are not their predecessor's followed by newer ones, bool [N], and how many are new, int64 [N].

    Each row has the `newest` of its events at most, so that of a full list the oldest may have gone.
    """
    lengths, offsets = _lengths(column), column.offsets.to_numpy().astype(np.int64)
    before, now = lengths[:-1], lengths[1:]
    new = now - before
    waiting = np.flatnonzero((new >= 0) & ((before < newest) | (now == newest)))
    broken, added = np.ones(len(lengths), bool), np.zeros(len(lengths), np.int64)
    bits = _bits(column.values)
    for more in range(_MOST_NEW):
        if not len(waiting):
            break
        overlap = now[waiting] - new[waiting] - more
        equal = (overlap >= 0) & _equal(
            bits, offsets[1:-1][waiting] - overlap, offsets[1:-1][waiting], np.maximum(overlap, 0)
        )
        broken[1 + waiting[equal]] = False
        added[1 + waiting[equal]] = new[waiting[equal]] + more
        # A list that is not full yet has lost no event, so it can only be its predecessor's with the rest behind it.
        waiting = waiting[~equal & (now[waiting] == newest) & (overlap > 0)]
    return broken, added


def _equal(bits: list[np.ndarray], left: np.ndarray, right: np.ndarray, counts: np.ndarray) -> np.ndarray:
    """Whether runs of `counts` items that begin at `left` and at `right` hold the same, bool [P]."""
    run = np.repeat(np.arange(len(counts)), counts)
    left_items, right_items = _runs(left, counts), _runs(right, counts)
    differ = np.zeros(len(run), bool)
    for each in bits:
        differ |= each[left_items] != each[right_items]
    return np.bincount(run[differ], minlength=len(counts)) == 0


def _runs(starts: np.ndarray, counts: np.ndarray) -> np.ndarray:
    """Places of runs of `counts` items, one run after the other."""
    ends = counts.cumsum()
    return np.arange(ends[-1] if len(ends) else 0) + np.repeat(starts - (ends - counts), counts)


def _bits(values: pa.Array) -> list[np.ndarray]:
    """Arrays that are all equal in two places exactly where the values are."""
    if isinstance(values, pa.StructArray):
        return [bits for field in values.flatten() for bits in _bits(field)]
    valid = [values.is_valid().to_numpy(zero_copy_only=False)] if values.null_count else []
    numbers = values.fill_null(0).to_numpy(zero_copy_only=False)
    return [numbers.view(f"i{numbers.itemsize}") if numbers.dtype.kind == "f" else numbers, *valid]


def _only(column: pa.Array, start: np.ndarray) -> pa.Array:
    """The values of the rows that begin a group, nothing in the others."""
    if isinstance(column, pa.ListArray):
        return _tails(column, np.where(start, _lengths(column), 0), start)
    if pa.types.is_floating(column.type):
        return pa.array(np.where(start, column.to_numpy(zero_copy_only=False), np.nan).astype(np.float32))
    values = column.fill_null(0).to_numpy(zero_copy_only=False)
    return pa.array(values, mask=~start | ~column.is_valid().to_numpy(zero_copy_only=False))


def _tails(column: pa.ListArray, counts: np.ndarray, start: np.ndarray) -> pa.ListArray:
    """The last `counts` items of the rows of each group, together in the row that begins it."""
    ends = column.offsets.to_numpy().astype(np.int64)[1:]
    begun = np.flatnonzero(start)
    lengths = np.zeros(len(counts), np.int64)
    if len(begun):
        lengths[begun] = np.add.reduceat(counts, begun)
    return _list_array(column, lengths, column.values.take(pa.array(_runs(ends - counts, counts))))


def _list_array(like: pa.ListArray, lengths: np.ndarray, items: pa.Array) -> pa.ListArray:
    offsets = np.concatenate([[0], lengths.cumsum()])
    if offsets[-1] > np.iinfo(np.int32).max:
        raise pa.ArrowInvalid(f"{offsets[-1]:,} items are too many for one row group")
    return pa.ListArray.from_arrays(pa.array(offsets.astype(np.int32)), items, type=like.type)


def _lengths(column: pa.ListArray) -> np.ndarray:
    return np.diff(column.offsets.to_numpy()).astype(np.int64)


def _whole(rows: pa.Table, name: str) -> pa.Array:
    column = rows[name].combine_chunks()
    return pa.concat_arrays(column.chunks) if isinstance(column, pa.ChunkedArray) else column
