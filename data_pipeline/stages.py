"""The stage functions that a job runs: read and prepare units, order a partition. Each returns `(*held, report)`."""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from data_pipeline import kinds
from data_pipeline.groups import ORDER_FIELDS, Grouping
from data_pipeline.manifest import prepared_columns
from data_pipeline.sources import FILE_INDEX_SHIFT, ROW_HASH, Source, Unit, UnreadableError
from data_pipeline.time_found import TimeFound
from data_pipeline.transforms import BAD_ROW_REASONS, DETAIL, REASON, has_truth, prepare
from rankmixer_dist.schema import ROW_ID, TIMESTAMP, Schema


@dataclass(frozen=True)
class Recipe:
    """All that reading a unit needs; `time_ranges` are the splits' [start, end) in ms, in which no two overlap."""

    source: Source
    schema: Schema
    time_ranges: Mapping[str, tuple[int, int]]
    grouping: Grouping | None = None

    @property
    def has_truth(self) -> bool:
        return has_truth(self.schema, self.source.truth_columns)

    def columns(self) -> pa.Schema:
        """Columns of a prepared row on its way to the shards."""
        columns = prepared_columns(self.schema, has_truth=self.has_truth)
        if self.source.drops_duplicates:
            columns = columns.append(pa.field(ROW_HASH, pa.int64(), nullable=False))
        return columns if self.grouping is None else pa.schema([*columns, *ORDER_FIELDS])

    def order(self) -> list[str]:
        """Columns that rows are sorted by before any other; rows that are equal in them go to one partition."""
        return [TIMESTAMP] if self.grouping is None else [field.name for field in ORDER_FIELDS]


@dataclass(frozen=True)
class BadRow:
    """Where a row that cannot be prepared stands (`row` counts from 0 in its file), and why."""

    file: str
    row: int
    reason: str
    column: str
    value: str


@dataclass
class ReadReport:
    """What a reading task found."""

    raw_rows: int = 0
    good_rows: int = 0
    set_aside: Counter[str] = field(default_factory=Counter)
    flags: Counter[str] = field(default_factory=Counter)
    unreadable: list[str] = field(default_factory=list)
    first_bad: BadRow | None = None
    unreadable_rows: int = 0
    in_splits: int = 0
    unknown_labels: Counter[str] = field(default_factory=Counter)
    beyond_table: Counter[str] = field(default_factory=Counter)
    time: TimeFound = field(default_factory=TimeFound)


@dataclass(frozen=True)
class OrderReport:
    """Rows [start, stop) of each split in an ordered partition, and how many duplicates left it."""

    split_rows: dict[str, tuple[int, int]]
    duplicates: int


def read_units(
    units: tuple[Unit, ...], recipe: Recipe, side_tables: Mapping[str, pa.Table]
) -> tuple[pa.Table, list[pa.Table], ReadReport]:
    """Reads and prepares the units; holds the good rows, and the set-aside rows of each unit that has any."""
    report = ReadReport()
    good = [recipe.columns().empty_table()]
    aside = []
    ranges = list(recipe.time_ranges.values())
    for unit in units:
        try:
            raw = recipe.source.read(unit, side_tables)
        except UnreadableError as error:
            report.unreadable.append(str(error))
            report.unreadable_rows += unit.rows
            continue
        prepared = prepare(
            raw,
            recipe.schema,
            truth_columns=recipe.source.truth_columns,
            time_ranges=recipe.time_ranges,
            grouping=recipe.grouping,
        )
        good.append(prepared.rows)
        report.raw_rows += raw.num_rows
        report.good_rows += prepared.rows.num_rows
        report.time.add(prepared.time_ms, ranges, str(unit.path))
        report.in_splits += prepared.in_splits
        report.unknown_labels.update(prepared.unknown_labels)
        report.beyond_table.update(prepared.beyond_table)
        report.flags.update({name: pc.sum(raw[name]).as_py() or 0 for name in recipe.source.flags})
        if prepared.set_aside.num_rows:
            aside.append(_as_in(recipe.source.schema(), prepared.set_aside))
            _count_set_aside(report, unit, prepared.set_aside)
    return pa.concat_tables(good), aside, report


def block_range(block: pa.Table, order: Sequence[str]) -> tuple[tuple[tuple[int, ...], tuple[int, ...]] | None]:
    """The first and the last row of a sorted table in the columns of its order, None when it is empty."""
    if not block.num_rows:
        return (None,)
    first, last = (tuple(block[name][place].as_py() for name in order) for place in (0, -1))
    return ((first, last),)


def order_rows(recipe: Recipe, *blocks: pa.Table) -> tuple[pa.Table, pa.Table, OrderReport]:
    """Puts the rows of blocks into their final order (`recipe.order()`, timestamp, row_id), without exact duplicates;
    holds both.

    Rows that are equal in `recipe.order()` must all be in these blocks.
    """
    rows = pa.concat_tables(blocks).select(recipe.columns().names).cast(recipe.columns())
    order = dict.fromkeys([*recipe.order(), TIMESTAMP, ROW_ID])
    rows = rows.take(np.lexsort([rows[name].to_numpy() for name in reversed(order)]))
    duplicate = np.zeros(rows.num_rows, dtype=bool)
    if recipe.source.drops_duplicates:
        duplicate = repeats(rows[TIMESTAMP].to_numpy(), rows[ROW_HASH].to_numpy())
        rows = rows.drop_columns([ROW_HASH])
    ordered, dropped = rows.filter(pa.array(~duplicate)), rows.filter(pa.array(duplicate))
    if recipe.grouping is not None:
        dropped = dropped.drop_columns([field.name for field in ORDER_FIELDS])
    times = ordered[recipe.order()[0]].to_numpy()  # a window lies in one split
    split_rows = {
        name: (int(np.searchsorted(times, start)), int(np.searchsorted(times, end)))
        for name, (start, end) in recipe.time_ranges.items()
    }
    return ordered, dropped, OrderReport(split_rows, int(duplicate.sum()))


def repeats(timestamps: np.ndarray, hashes: np.ndarray) -> np.ndarray:
    """Which rows have an earlier row of equal timestamp and hash; bool [N]."""
    order = np.lexsort((hashes, timestamps))  # stable: of equal rows the earlier one comes first
    same = (np.diff(timestamps[order]) == 0) & (np.diff(hashes[order]) == 0)
    repeat = np.zeros(len(order), dtype=bool)
    repeat[order[1:]] = same
    return repeat


def _as_in(schema: pa.Schema, aside: pa.Table) -> pa.Table:
    """Set-aside rows of any file in the types that all files share, so that they can stand in one file."""
    for name, kind in zip(schema.names, schema.types, strict=True):
        place = aside.schema.get_field_index(name)
        aside = aside.set_column(place, name, kinds.converted(aside.column(place), kind))
    return aside.select([*schema.names, REASON, DETAIL])


def _count_set_aside(report: ReadReport, unit: Unit, aside: pa.Table) -> None:
    for count in pc.value_counts(aside[REASON]).to_pylist():
        report.set_aside[count["values"]] += count["counts"]
    bad = aside.filter(pc.is_in(aside[REASON], pa.array(BAD_ROW_REASONS)))
    if bad.num_rows and report.first_bad is None:
        row = bad.slice(0, 1)
        column = row[DETAIL][0].as_py()
        report.first_bad = BadRow(
            file=str(unit.path),
            row=row[ROW_ID][0].as_py() & ((1 << FILE_INDEX_SHIFT) - 1),
            reason=row[REASON][0].as_py(),
            column=column,
            value=_shown(row[column][0])[:80],
        )


def _shown(value: pa.Scalar) -> str:
    try:
        return str(value.as_py())
    except (ValueError, OverflowError):  # a moment that Python has no date for
        return str(value.value)
