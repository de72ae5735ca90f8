"""Raw lists to a column of events: all columns of a sequence stay aligned, whatever is missing in one of them.

A row's events are one list of structs, so that one offset says where they lie in every column. A missing element is a
missing value at its place: a null id, a NaN, a flag that is not set, a null time. A null list is one whose elements are
all missing, of the length that the row's other lists have. Lists of a row that differ in length are a bad row.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from itertools import chain

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from data_pipeline import kinds
from data_pipeline.prepared_values import id_keys, numbers
from data_pipeline.raw_values import labels, milliseconds
from rankmixer_dist.schema import EventColumn, EventFlags, EventIds, EventNumbers, EventSequence, EventTimes, Table

NOT_ALIGNED, BAD_FLAG = "events_not_aligned", "event_flag_not_0_or_1"
BAD_TIME, NOT_BEFORE = "event_time_not_whole_ms", "event_not_before_row"


def events_type(sequence: EventSequence) -> pa.DataType:
    """Of a prepared column: a list of events, each with a field a column of the sequence."""
    fields = []
    for name, column in sequence.columns.items():
        if isinstance(column, EventNumbers):
            fields.append(pa.field(name, pa.float32(), nullable=False))  # NaN is a missing value
        elif isinstance(column, EventFlags):
            fields.append(pa.field(name, pa.int32(), nullable=False))
        else:
            fields.append(pa.field(name, pa.int64()))
    return pa.list_(pa.field("item", pa.struct(fields), nullable=False))


@dataclass(frozen=True)
class EventFault:
    """Rows that cannot be prepared, bool [R], and why.

    column: of the sequence.
    raw: column that it is made from.
    """

    column: str
    raw: str
    reason: str
    rows: np.ndarray


def prepare_events(
    raw: Mapping[str, pa.Array], sequence: EventSequence, tables: Mapping[str, Table], row_time: np.ndarray
) -> tuple[pa.ListArray, list[EventFault]]:
    """The prepared column.

    Args:
        raw: raw columns of lists, of R rows.
        row_time: int64 [R]; what a row sees has to be earlier.
    """
    rows = len(row_time)
    lists = {name: _list_of(raw[name]) for name in dict.fromkeys(chain(*sequence.raw_columns().values()))}
    lengths = np.max([np.where(valid, length, 0) for length, valid, _ in lists.values()], axis=0)
    uneven = {name: valid & (length != lengths) for name, (length, valid, _) in lists.items()}
    lengths[np.logical_or.reduce([*uneven.values()])] = 0
    counts = np.minimum(lengths, sequence.max_length)
    row = np.repeat(np.arange(rows), counts)
    place = np.arange(len(row)) - np.repeat(counts.cumsum() - counts, counts) + (lengths - counts)[row]
    faults: list[EventFault] = []
    items = []
    for name, column in sequence.columns.items():
        names = sequence.raw_columns()[name]
        faults += [EventFault(name, each, NOT_ALIGNED, uneven[each]) for each in names]
        item, found = _column([_newest(*lists[each], row, place) for each in names], column, tables, row_time[row])
        items.append(item)
        for raw_place, reason, fault in found:
            faults.append(EventFault(name, names[raw_place], reason, np.bincount(row[fault], minlength=rows) > 0))
    kind = events_type(sequence)
    events = pa.StructArray.from_arrays(items, fields=[*kind.value_type])
    offsets = pa.array(np.concatenate([[0], counts.cumsum()]).astype(np.int32))
    return pa.ListArray.from_arrays(offsets, events, type=kind), faults


def _list_of(column: pa.Array) -> tuple[np.ndarray, np.ndarray, pa.Array]:
    """Length of each list, int64 [R]; which are not null, bool [R]; the items of all."""
    if kinds.is_null(column.type):
        column = column.cast(pa.list_(pa.null()))
    lengths, items = kinds.flat(column)
    return lengths, column.is_valid().to_numpy(zero_copy_only=False), items


def _newest(lengths: np.ndarray, valid: np.ndarray, items: pa.Array, row: np.ndarray, place: np.ndarray) -> pa.Array:
    """The item at each place of each row's list; null where the list is."""
    starts = lengths.cumsum() - lengths
    known = valid[row]
    return items.take(pa.array(np.where(known, starts[row] + place, 0), mask=~known))


def _column(
    values: list[pa.Array], column: EventColumn, tables: Mapping[str, Table], row_time: np.ndarray
) -> tuple[pa.Array, list[tuple[int, str, np.ndarray]]]:
    """The items of an event column, and which of them cannot be prepared: place in `values`, reason, bool [N]."""
    if isinstance(column, EventIds):
        keys, missing, faults = id_keys(values[0], tables[column.table])
        return pa.array(keys, mask=missing), [(0, reason, fault) for reason, fault in faults.items()]
    if isinstance(column, EventNumbers):
        narrow, faults = numbers(values[0], column.transform)
        return pa.array(narrow), [(0, reason, fault) for reason, fault in faults.items()]
    if isinstance(column, EventTimes):
        time, known, faulty = milliseconds(values[0])
        late = known & ~faulty & (time >= row_time)
        return pa.array(time, mask=~known), [(0, BAD_TIME, faulty), (0, NOT_BEFORE, late)]
    bits, found = np.zeros(len(row_time), np.int32), []
    for place, each in enumerate(values):
        flag, faulty = labels(each)
        bits |= (flag == 1).astype(np.int32) << place
        found.append((place, BAD_FLAG, faulty))
    return pa.array(bits), found


def event_keys(events: pa.ChunkedArray, column: str) -> pa.ChunkedArray:
    """The keys that one column of events holds, in order; null where one is missing."""
    return pc.struct_field(pc.list_flatten(events), column)
