"""Raw values of any type as moments, and what is said of times far from all splits."""

from datetime import date, datetime

import numpy as np
import pyarrow as pa
import pytest

from data_pipeline import kinds
from data_pipeline.raw_values import milliseconds
from data_pipeline.time_found import TimeFound, moment, year

DAY_MS = 86_400_000
NOON = datetime(2026, 1, 7, 12, 0, 0, 999_000)
NOON_MS = 1_767_787_200_999


@pytest.mark.parametrize("zone", [None, "UTC", "America/New_York"])
@pytest.mark.parametrize(
    ("unit", "expected"), [("s", NOON_MS - 999), ("ms", NOON_MS), ("us", NOON_MS), ("ns", NOON_MS)]
)
def test_a_timestamp_has_the_unit_of_its_type_and_without_a_zone_is_utc(unit, expected, zone):
    values = pa.array([NOON_MS, None]).cast(pa.timestamp("ms")).cast(pa.timestamp(unit), safe=False)
    time, present, faulty = milliseconds(values.view(pa.timestamp(unit, zone)))
    assert (time[0], present.tolist(), faulty.tolist()) == (expected, [True, False], [False, False])


def test_dates_and_moments_before_1970_are_rounded_down():
    assert milliseconds(pa.array([date(2026, 1, 7), date(1969, 12, 31)]))[0].tolist() == [
        NOON_MS // DAY_MS * DAY_MS,
        -DAY_MS,
    ]
    assert milliseconds(pa.array([1000 * DAY_MS, None], pa.date64()))[0][0] == 1000 * DAY_MS
    assert milliseconds(pa.array([-1, -1_000_001], pa.timestamp("ns")))[0].tolist() == [-1, -2]


def test_what_no_int64_of_milliseconds_can_hold_is_a_fault():
    most = 2**63 - 1
    for values in (pa.array([most, most // 1000], pa.timestamp("s")), pa.array([2**63, 5], pa.uint64())):
        time, present, faulty = milliseconds(values)
        assert faulty.tolist() == [True, False]
        assert present.all()
    assert time[1] == 5


@pytest.mark.parametrize(
    ("time", "word", "number"), [(-(2**63), "-292", -292275055), (2**63 - 1, "+292", 292278994), (-1, "1969", 1969)]
)
def test_any_int64_is_a_moment_of_some_year(time, word, number):
    assert moment(time).startswith((word, word.lstrip("+")))
    assert year(time) == number


def test_rows_within_a_year_of_a_split_are_not_told():
    found = TimeFound()
    ranges = [(NOON_MS, NOON_MS + DAY_MS)]
    near = np.array([NOON_MS - 365 * DAY_MS, NOON_MS, NOON_MS + 366 * DAY_MS])
    found.add(near, ranges, "a")
    assert found.far() is None
    assert found.span() == "the raw log runs from 2025-01-07T12:00:00.999Z to 2027-01-08T12:00:00.999Z"
    found.add(np.array([], np.int64), ranges, "b")
    found.add(np.array([NOON_MS - 400 * DAY_MS, NOON_MS + 800 * DAY_MS]), ranges, "c")
    told = "2 rows, the first in c, lie more than a year outside of all splits, in the years 2024 to 2028"
    assert found.far() == told
    # Half of them may be seconds; that is not said of a log where most are not.
    found.add(np.array([NOON_MS // 1000] * 2), ranges, "d")
    assert found.far() == told.replace("2 rows", "4 rows").replace("2024", "1970")
    found.add(np.array([NOON_MS // 1000]), ranges, "d")
    assert "taken for seconds, 3 of them" in found.far()


@pytest.mark.parametrize("kind", [pa.list_(pa.int64()), pa.large_list(pa.int64()), pa.list_view(pa.int64())])
def test_lists_are_flattened_alike_whatever_lies_under_a_null(kind):
    lists = pa.array([[5], [7, 8], None, [2, None], []], kind)[1:]
    lengths, items = kinds.flat(lists)
    assert (lengths.tolist(), items.to_pylist()) == ([2, 0, 2, 0], [7, 8, 2, None])
    text = kinds.common([kind, pa.list_(pa.string()), pa.null()])
    assert kinds.converted(lists, text).to_pylist() == [["7", "8"], None, ["2", None], []]


@pytest.mark.parametrize(
    ("found", "common"),
    [
        ([], pa.null()),
        ([pa.null(), pa.int8()], pa.int8()),
        ([pa.int8(), pa.int32()], pa.int64()),
        ([pa.uint8(), pa.uint64()], pa.uint64()),
        ([pa.int64(), pa.uint64()], pa.large_string()),
        ([pa.int64(), pa.float64()], pa.large_string()),
        ([pa.float32(), pa.float64()], pa.float64()),
        ([pa.string_view(), pa.string()], pa.string()),
        ([pa.binary(), pa.string()], pa.large_binary()),
        ([pa.timestamp("us", "UTC"), pa.int64()], pa.large_string()),
        ([pa.timestamp("s")], pa.string()),
        ([pa.dictionary(pa.int8(), pa.int32())], pa.int32()),
    ],
)
def test_the_common_type_loses_no_value(found, common):
    assert kinds.common(found) == common
    assert kinds.common(reversed(found)) == common
