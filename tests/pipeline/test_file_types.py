"""Files of one log in different types: the prepared rows are the same, whatever holds a value and whatever comes first."""

import shutil
from decimal import Decimal

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from data_pipeline.checks import check_columns
from data_pipeline.job import SerialJob
from data_pipeline.preprocess import preprocess
from data_pipeline.sources.parquet_log import ParquetLog
from data_pipeline.sources.synthetic import SyntheticLog
from data_pipeline.stages import Recipe, read_units
from rankmixer_dist.config import load_config
from rankmixer_dist.errors import UserError
from rankmixer_dist.schema import Schema

SCHEMA = Schema.model_validate(
    {
        "tables": {"video": {"rows": 5000, "dim": 4}, "exact": {"rows": 200, "dim": 4, "ids": "identity"}},
        "groups": {"all": 1},
        "features": {
            "video": {"kind": "id", "table": "video", "group": "all"},
            "exact": {"kind": "id", "column": "video", "table": "exact", "group": "all"},
            "watched": {"kind": "sequence", "table": "video", "query": "video", "max_length": 3, "group": "all"},
            "length": {"kind": "numeric", "group": "all"},
            "bucket": {"kind": "id", "column": "length", "table": "exact", "boundaries": [50, 60], "group": "all"},
        },
        "tasks": {"finish": {}},
    }
)
START = 1_767_225_600_000
FILES, ROWS = 3, 4
VALUES = {
    "user_id": [7, 0, 101, 7],
    "timestamp": [START + 1000 * second for second in range(ROWS)],
    "finish": [0, 1, 1, 0],
    "video": [12, 0, None, 127],
    "watched": [[1, 2], None, [3, 12], [127, 0]],
    "length": [1, None, 50, 63],
}


class SmallLog(SyntheticLog):
    """The `log_*.parquet` of a folder, for SCHEMA."""

    truth_columns = {}
    outcome_columns = leaking_columns = frozenset()

    def __init__(self, folder):
        columns = {"user_id", "timestamp", *SCHEMA.raw_columns().values(), *SCHEMA.label_columns().values()}
        self._log = ParquetLog(folder, columns)


def prepared(folder):
    """The prepared rows by time, without their row ids and with None for NaN, and the reasons of the others."""
    source = SmallLog(folder)
    check_columns(SCHEMA, source)
    recipe = Recipe(source, SCHEMA, {"all": (START, START + 86_400_000)})
    rows, aside, _ = read_units(tuple(source.units()), recipe, {})
    found = rows.drop_columns(["row_id"]).sort_by("timestamp").to_pylist()
    found = [{name: None if value != value else value for name, value in row.items()} for row in found]
    return found, [row["set_aside_reason"] for table in aside for row in table.to_pylist()]


def decimals(values):
    return [None if value is None else Decimal(value) for value in values]


def digits(values):
    return [None if value is None else str(value) for value in values]


def bytes_(values):
    return [None if value is None else str(value).encode() for value in values]


def plain(values):
    return values


NUMBERS = {kind: plain for kind in (pa.int8(), pa.uint8(), pa.int32(), pa.uint32(), pa.int64(), pa.uint64())}
NUMBERS |= {kind: plain for kind in (pa.float16(), pa.float32(), pa.float64())}
NUMBERS |= {kind: decimals for kind in (pa.decimal128(9, 0), pa.decimal128(20, 3), pa.decimal256(50, 2))}
IDS = NUMBERS | {kind: digits for kind in (pa.string(), pa.large_string(), pa.string_view())}
IDS |= {kind: bytes_ for kind in (pa.binary(), pa.binary_view())}
IDS |= {pa.dictionary(pa.int8(), pa.string()): digits, pa.dictionary(pa.int32(), pa.int64()): plain}
TIMES = {pa.timestamp(unit, zone) for unit in ("s", "ms", "us", "ns") for zone in (None, "UTC", "Asia/Shanghai")}
TIMES |= {pa.int64(), pa.uint64(), pa.float64(), pa.decimal128(20, 0)}
LISTS = [pa.list_, pa.large_list, pa.list_view, lambda item: pa.list_(item, 2)]


@st.composite
def columns(draw):
    """One file's columns, in any of the types that hold their values, in any order."""
    made = {}
    for name, values in VALUES.items():
        if name == "timestamp":
            kind = draw(st.sampled_from(sorted(TIMES, key=str)))
            in_ms = pa.array(values).cast(pa.timestamp("ms", getattr(kind, "tz", None)))
            moment = pa.types.is_timestamp(kind)
            made[name] = (
                in_ms.cast(kind) if moment else pa.array(decimals(values) if "dec" in str(kind) else values, kind)
            )
            continue
        if name == "watched":
            item = draw(st.sampled_from(sorted(IDS, key=str)))
            kind = draw(st.sampled_from(LISTS))(item)
            made[name] = pa.array([None if each is None else IDS[item](each) for each in values], kind)
            continue
        fitting = {"finish": NUMBERS, "length": NUMBERS}.get(name, IDS)
        kind = draw(st.sampled_from(sorted(fitting, key=str)))
        made[name] = pa.array(fitting[kind](values), kind)
    if draw(st.booleans()):
        made["finish"] = pa.array([bool(value) for value in VALUES["finish"]])
    if draw(st.booleans()):
        made["nobody"] = draw(st.sampled_from([pa.nulls(ROWS), pa.array([[{"a": 1}]] * ROWS), pa.array(range(ROWS))]))
    return pa.table({name: made[name] for name in draw(st.permutations(sorted(made)))})


def write(folder, tables):
    """Files in the order of their names; row k of file n is n hours later."""
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir()
    for number, (table, options) in enumerate(tables):
        pq.write_table(table, folder / f"log_{number}.parquet", **options)


OPTIONS = st.fixed_dictionaries(
    {
        "compression": st.sampled_from(["none", "snappy", "zstd"]),
        "use_dictionary": st.booleans(),
        "row_group_size": st.sampled_from([1, 3, 100]),
    }
)


@settings(max_examples=80, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(tables=st.lists(st.tuples(columns(), OPTIONS), min_size=FILES, max_size=FILES))
def test_types_and_the_order_of_files_change_no_row(tmp_path, tables):
    write(tmp_path / "same", [(pa.table(VALUES), {})] * FILES)
    expected, reasons = prepared(tmp_path / "same")
    assert not reasons
    assert [row["exact"] for row in expected[::FILES]] == [13, 1, 0, 128]
    empty = pa.table({name: pa.array([], pa.date32()) for name in ("user_id", "other")})
    write(tmp_path / "mixed", [(empty, {}), *tables])
    assert prepared(tmp_path / "mixed") == (expected, [])
