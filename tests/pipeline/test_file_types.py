"""Files of one log in different types: the prepared rows are the same, whatever holds a value and comes first."""

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
    return found, [reason for table in aside for reason in table["set_aside_reason"].to_pylist()]


def decimals(values):
    return [None if value is None else Decimal(value) for value in values]


def digits(values):
    return [None if value is None else str(value) for value in values]


def bytes_(values):
    return [None if value is None else str(value).encode() for value in values]


def plain(values):
    return values


NUMBERS = dict.fromkeys((pa.int8(), pa.uint8(), pa.int32(), pa.uint32(), pa.int64(), pa.uint64()), plain)
NUMBERS |= dict.fromkeys((pa.float16(), pa.float32(), pa.float64()), plain)
NUMBERS |= dict.fromkeys((pa.decimal128(9, 0), pa.decimal128(20, 3), pa.decimal256(50, 2)), decimals)
IDS = NUMBERS | dict.fromkeys((pa.string(), pa.large_string(), pa.string_view()), digits)
IDS |= dict.fromkeys((pa.binary(), pa.binary_view()), bytes_)
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
    """Files in the order of their names, each a table and how it is written."""
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


@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(tables=st.lists(st.tuples(columns(), OPTIONS), min_size=FILES, max_size=FILES))
def test_types_and_the_order_of_files_change_no_row(tmp_path, tables):
    write(tmp_path / "same", [(pa.table(VALUES), {})] * FILES)
    expected, reasons = prepared(tmp_path / "same")
    assert not reasons
    assert [row["exact"] for row in expected[::FILES]] == [12, 0, None, 127]
    # A file without rows has no say about types and columns.
    empty = pa.table({name: pa.array([], pa.date32()) for name in ("user_id", "other")})
    write(tmp_path / "mixed", [(empty, {}), *tables])
    assert prepared(tmp_path / "mixed") == (expected, [])


def replaced(column, values, kind=None):
    """The small log's rows with another column."""
    return pa.table(VALUES | {column: pa.array(values, kind)})


@pytest.mark.parametrize("first", [False, True])
@pytest.mark.parametrize(
    ("column", "values", "kind", "words"),
    [
        ("video", [[1]] * ROWS, pa.list_(pa.int64()), "an id feature needs integers or strings"),
        ("video", [{"id": 1}] * ROWS, pa.struct({"id": pa.int64()}), "an id feature needs integers or strings"),
        ("video", [0] * ROWS, pa.timestamp("ms"), "an id feature needs integers or strings"),
        ("video", [b"0123456789abcdef"] * ROWS, pa.binary(16), "an id feature needs integers or strings"),
        ("video", [b"0123456789abcdef"] * ROWS, pa.uuid(), "an id feature needs integers or strings"),
        ("watched", [1] * ROWS, pa.int64(), "a list of ids is needed"),
        ("watched", [[[1]]] * ROWS, pa.list_(pa.list_(pa.int64())), "a list of integers or strings is needed"),
        ("watched", [[("a", 1)]] * ROWS, pa.map_(pa.string(), pa.int64()), "a list of ids is needed"),
        ("length", ["1"] * ROWS, pa.string(), "a numeric feature needs numbers"),
        ("finish", ["1"] * ROWS, pa.string(), "a label is a number, 0 or 1"),
        ("timestamp", ["2026"] * ROWS, pa.string(), "a time is needed"),
        ("user_id", [[1]] * ROWS, pa.list_(pa.int64()), "integers or strings are needed"),
    ],
)
def test_types_that_do_not_meet_name_the_column_and_both_files(tmp_path, first, column, values, kind, words):
    good, bad = (pa.table(VALUES), {}), (replaced(column, values, kind), {})
    write(tmp_path / "log", [bad, good] if first else [good, bad])
    with pytest.raises(UserError) as refused:
        prepared(tmp_path / "log")
    text = str(refused.value)
    assert f"{column!r} is {bad[0].schema.field(column).type}".split("<")[0] in text
    assert f"in {tmp_path}/log/log_{0 if first else 1}.parquet (in {tmp_path}/log/log_{1 if first else 0}.par" in text
    assert words in text


def test_a_column_without_a_value_anywhere_is_missing_everywhere(tmp_path):
    nothing = {name: pa.nulls(ROWS) for name in ("video", "watched", "length")}
    write(tmp_path / "log", [(pa.table(VALUES | nothing), {})])
    rows, reasons = prepared(tmp_path / "log")
    assert not reasons
    assert [(row["video"], row["exact"], row["watched"], row["length"], row["bucket"]) for row in rows] == [
        (None, None, [], None, None)
    ] * ROWS


@pytest.mark.parametrize(
    ("column", "values", "kind", "reason"),
    [
        ("finish", [2, 0, 1, 0], None, "label_not_0_or_1"),
        ("finish", [0.5, 0, 1, 0], None, "label_not_0_or_1"),
        ("finish", [float("inf"), 0, 1, 0], None, "label_not_0_or_1"),
        ("finish", [-(2**63), 0, 1, 0], None, "label_not_0_or_1"),
        ("finish", [2**53 + 1, 0, 1, 0], None, "label_not_0_or_1"),
        ("finish", [2**64 - 1, 0, 1, 0], pa.uint64(), "label_not_0_or_1"),
        ("finish", decimals(["0.99999999999999999999", "0", "1", "0"]), None, "label_not_0_or_1"),
        ("finish", [None, 0, 1, 0], None, "label_not_0_or_1"),
        ("video", [12.5, 0, 1, 2], None, "id_not_whole"),
        ("video", [2.0**53, 0, 1, 2], None, "id_not_whole"),
        ("video", [2.0**24, 0, 1, 2], pa.float32(), "id_not_whole"),
        ("video", decimals(["0.5", "0", "1", "2"]), None, "id_not_whole"),
        ("video", ["012", "0", "1", "2"], None, "id_not_whole"),  # another id, which an identity table cannot hold
        ("video", [2**63, 0, 1, 2], pa.uint64(), "id_out_of_range"),
        ("watched", [[1.0, 0.5], [], [], []], None, "id_not_whole"),
        ("user_id", [0.5, 0, 1, 2], None, "id_not_whole"),
        ("user_id", [float("nan"), 0, 1, 2], None, "missing_user_id"),
        ("user_id", ["", "0", "1", "2"], None, "missing_user_id"),
        ("length", [float("inf"), 0, 1, 2], None, "numeric_not_finite"),
        ("timestamp", [START + 0.5, *VALUES["timestamp"][1:]], None, "timestamp_not_whole_ms"),
        ("timestamp", [2**64 - 1, *VALUES["timestamp"][1:]], pa.uint64(), "timestamp_not_whole_ms"),
        ("timestamp", [float("nan"), *VALUES["timestamp"][1:]], None, "missing_timestamp"),
        (
            "timestamp",
            [2**62, *(time * 1000 for time in VALUES["timestamp"][1:])],
            pa.timestamp("us"),
            "outside_splits",
        ),
    ],
)
def test_a_value_that_cannot_be_what_it_should_is_a_bad_row(tmp_path, column, values, kind, reason):
    write(tmp_path / "log", [(replaced(column, values, kind), {})])
    rows, reasons = prepared(tmp_path / "log")
    assert (len(rows), reasons) == (ROWS - 1, [reason])


def test_integers_beyond_what_a_float_holds_are_rounded_as_numbers_and_exact_as_ids(tmp_path):
    column = pa.array([2**53 + 1, 2**60, 2**64 - 1, 2**63 + 1], pa.uint64())
    write(tmp_path / "log", [(pa.table(VALUES | {"length": column, "user_id": column}), {})])
    rows, reasons = prepared(tmp_path / "log")
    assert not reasons
    assert [row["length"] for row in rows] == [float(2**53), float(2**60), float(2**64), float(2**63)]
    assert [row["bucket"] for row in rows] == [2] * ROWS
    assert [row["user_id"] for row in rows] == [2**53 + 1, 2**60, -1, 1 - 2**63]


def test_a_column_that_is_used_may_stand_in_a_file_only_once(tmp_path):
    table = pa.table(VALUES)
    names = [*table.column_names, "other", "other"]
    write(tmp_path / "log", [(table, {}), (pa.table([*table.columns, table["video"], table["video"]], names), {})])
    assert prepared(tmp_path / "log")[1] == []
    names = [*table.column_names, "video"]
    write(tmp_path / "log", [(table, {}), (pa.table([*table.columns, table["video"]], names), {})])
    with pytest.raises(UserError, match=r"log_1\.parquet: has 2 columns named 'video'"):
        prepared(tmp_path / "log")


def test_dates_of_old_writers_beyond_2262_are_what_they_say(tmp_path):
    late = pa.array([32_503_680_000_000, *VALUES["timestamp"][1:]]).cast(pa.timestamp("ms"))
    write(tmp_path / "log", [(replaced("timestamp", late), {"use_deprecated_int96_timestamps": True})])
    source = SmallLog(tmp_path / "log")
    _, (aside,), report = read_units(tuple(source.units()), Recipe(source, SCHEMA, {"all": (START, START + 1)}), {})
    assert report.time.last == 32_503_680_000_000
    assert aside["timestamp"].cast(pa.int64()).to_pylist() == [32_503_680_000_000, *VALUES["timestamp"][1:]]


@pytest.fixture
def log(small_config, tmp_path):
    """A copy of the small log, and a function that prepares it with its files rewritten."""
    folder = tmp_path / "raw"

    def prepare(edit, *overrides):
        shutil.rmtree(folder, ignore_errors=True)
        shutil.copytree(load_config(small_config).source.path, folder)
        for number, path in enumerate(sorted(folder.glob("log_*.parquet"))):
            table = edit(number, pq.read_table(path))
            pq.write_table(table, path)
        paths = [f"source.path={folder}", f"data.prepared={tmp_path / 'prepared'}"]
        return preprocess(load_config(small_config, [*paths, *overrides]), progress=False, job=SerialJob())

    return prepare


def set_column(table, name, values):
    return table.set_column(table.column_names.index(name), name, values)


def test_set_aside_rows_of_files_of_other_types_stand_in_one_file_as_they_were_read(log, tmp_path, capfd):
    types = [pa.int32(), pa.string(), pa.float64(), pa.large_string()]

    def edit(number, table):
        table = set_column(table, "video_id", table["video_id"].combine_chunks().cast(types[number % 4]))
        return set_column(table, "like", pa.array([7, *table["like"].to_pylist()[1:]], pa.int64()))

    manifest = log(edit, "data.on_bad_row=set_aside")
    assert "warning: 14 of 3,000 rows are bad and set aside; see set_aside/" in capfd.readouterr().err
    assert manifest.set_aside == {"label_not_0_or_1": 14}
    assert manifest.raw_types["video_id"] == sorted(str(kind) for kind in types)
    assert manifest.raw_types["timestamp"] == ["int64"]
    aside = pq.read_table(tmp_path / "prepared" / "set_aside" / "label_not_0_or_1.parquet")
    first = [pq.read_table(path).slice(0, 1).to_pylist()[0] for path in sorted((tmp_path / "raw").glob("log_*"))]
    assert [int(text) for text in aside["video_id"].to_pylist()] == [int(row["video_id"]) for row in first]
    assert aside["like"].to_pylist() == [7] * 14
    assert aside["watched"].to_pylist() == [row["watched"] for row in first]


def test_times_without_a_zone_are_taken_for_utc_and_said_to_be(log, tmp_path):
    def edit(number, table):
        time = table["timestamp"].cast(pa.timestamp("ms"))
        return set_column(table, "timestamp", time) if number == 3 else table

    manifest = log(edit)
    assert manifest.rows("train") + manifest.rows("test") == 3000
    file = sorted((tmp_path / "raw").glob("log_*"))[3]
    assert manifest.notes == [f"column 'timestamp' is timestamp[ms] without a time zone, in {file}: taken for UTC"]


def test_a_numeric_that_is_constant_has_no_deviation(log):
    value = 1e9 + 1 / 3
    manifest = log(lambda _, table: set_column(table, "video_age_hours", pa.array(np.full(len(table), value))))
    assert manifest.numerics["video_age"].std == 0.0


@pytest.mark.parametrize(
    ("factor", "unit", "years"),
    [
        (0.001, "seconds", "the year 1970"),
        (1000, "microseconds", "the years 57989 to 57990"),
        (1_000_000, "nanoseconds", "the years 56021446 to 56022268"),
    ],
)
def test_times_in_another_unit_are_told_by_the_years_that_they_give(log, tmp_path, capfd, factor, unit, years):
    def edit(number, table):
        time = table["timestamp"].to_numpy()
        other = time // 1000 if factor < 1 else time * factor
        return set_column(table, "timestamp", pa.array(other)) if number in chosen else table

    last = tmp_path / "raw" / "log_2026-01-07_0001.parquet"
    chosen = {13}
    manifest = log(edit)
    lost = pq.read_metadata(last).num_rows
    told = (
        f"{lost} rows, the first in {last}, lie more than a year outside of all splits, in {years}; taken for {unit}, "
        f"{lost} of them lie where the splits are: write the column in milliseconds, or as a Parquet timestamp of the "
        "right unit"
    )
    assert manifest.notes == [told]
    assert f"warning: {told}" in capfd.readouterr().err
    shutil.rmtree(tmp_path / "prepared")
    chosen = {12, 13}
    with pytest.raises(
        UserError, match=rf"data\.splits\.test holds no row; train holds 2,5\d\d; .* taken for {unit}, "
    ):
        log(edit)
    chosen = set(range(14))
    with pytest.raises(
        UserError, match=f"no row is left for any split; 3,000 rows, .* taken for {unit}, 3,000 of them"
    ):
        log(edit)


@pytest.mark.parametrize("column", ["label", "p_finish"])
@pytest.mark.parametrize("feature", ["activity", "watched"])
def test_what_a_label_is_made_from_is_never_a_feature(log, column, feature):
    def edit(_, table):
        return table.append_column("label", table["finish"])

    overrides = [f"features.features.{feature}.column={column}", "features.tasks.finish.column=label"]
    with pytest.raises(UserError, match=f"feature {feature}: column '{column}'"):
        log(edit, *overrides)
