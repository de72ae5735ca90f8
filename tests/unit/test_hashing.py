"""Hashes of strings against a plain loop, of values across types, and of rows."""

from decimal import Decimal

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from data_pipeline.hashing import hash_rows, hash_strings, hash_values, read_ids


def fnv_1a(text):
    value = 0xCBF29CE484222325
    for byte in text.encode():
        value = (value ^ byte) * 0x100000001B3 % 2**64
    return value


@given(st.lists(st.text(max_size=12) | st.just("the same"), max_size=30))
def test_strings_hash_as_fnv_1a(words):
    array = pa.array(words, pa.string())
    expected = [fnv_1a(word) for word in words]
    assert hash_strings(array).tolist() == expected
    assert hash_strings(array.cast(pa.large_string())).tolist() == expected
    padded = pa.array(["x", *words, "y"], pa.string())
    assert hash_strings(padded.slice(1, len(words))).tolist() == expected


def test_an_integer_hashes_by_its_value_whatever_its_width():
    wide = hash_values(pa.array([0, 1, 127, -1], pa.int64())).tolist()
    for kind in (pa.int8(), pa.int16(), pa.int32()):
        assert hash_values(pa.array([0, 1, 127, -1], kind)).tolist() == wide
    assert hash_values(pa.array([2**64 - 1], pa.uint64())).tolist() == wide[3:]
    assert len(set(wide)) == 4


@given(st.integers(-(2**63), 2**64 - 1))
def test_the_digits_of_an_integer_are_that_integer(number):
    kind = pa.int64() if number < 2**63 else pa.uint64()
    wanted = (number % 2**64, True, True, False)
    for values in (pa.array([number], kind), pa.array([str(number)]), pa.array([str(number).encode()])):
        ids = read_ids(values)
        assert (ids.bits[0], ids.integer[0], ids.present[0], ids.faulty[0]) == wanted
    assert hash_values(pa.array([str(number)])) == hash_values(pa.array([number], kind))
    if abs(number) < 2**53:
        assert read_ids(pa.array([float(number)])).bits[0] == wanted[0]


OTHER_IDS = [
    *("007", "00", "-0", "+5", " 5", "5 ", "5\n", "5.0", "1e3", "0x10", "1_000", "٣", "-", "--1", "5-", "twelve"),
    *(str(2**64), str(-(2**63) - 1), "9" * 20, "1" + "0" * 40),
]


@pytest.mark.parametrize(
    "kind", [pa.string(), pa.large_string(), pa.string_view(), pa.dictionary(pa.int8(), pa.string())]
)
def test_other_strings_are_ids_of_their_own(kind):
    ids = read_ids(pa.array([*OTHER_IDS, "5", ""], kind))
    assert ids.integer.tolist() == [False] * len(OTHER_IDS) + [True, False]
    assert ids.present.tolist() == [True] * (len(OTHER_IDS) + 1) + [False]
    assert ids.bits[: len(OTHER_IDS)].tolist() == [fnv_1a(word) for word in OTHER_IDS]


@pytest.mark.parametrize(("kind", "limit"), [(pa.float16(), 2**11), (pa.float32(), 2**24), (pa.float64(), 2**53)])
def test_a_float_is_an_id_only_where_it_is_whole_and_exact(kind, limit):
    ids = read_ids(pa.array([limit - 1, 1 - limit, -0.0, limit, -limit, 0.5, np.inf, np.nan, None]).cast(kind))
    assert ids.bits[:3].view(np.int64).tolist() == [limit - 1, 1 - limit, 0]
    assert ids.faulty.tolist() == [False] * 3 + [True] * 4 + [False] * 2
    assert ids.present.tolist() == [True] * 7 + [False] * 2


def test_a_decimal_is_an_id_only_where_it_is_whole_and_fits():
    numbers = ["12.00", "-3.00", "0.50", str(2**64 - 1) + ".00", str(2**64) + ".00", str(-(2**63)) + ".00", None]
    ids = read_ids(pa.array([None if text is None else Decimal(text) for text in numbers], pa.decimal128(30, 2)))
    assert ids.faulty.tolist() == [False, False, True, False, True, False, False]
    assert ids.present.tolist() == [True] * 6 + [False]
    assert ids.bits[[0, 1, 3, 5]].tolist() == [12, 2**64 - 3, 2**64 - 1, 2**63]


def test_rows_of_equal_values_hash_alike_whatever_types_hold_them():
    row = {"a": [3, None], "b": ["x", ""], "c": [0.5, 2.0]}
    hashes = hash_rows(pa.table(row)).to_pylist()
    other = {"a": pa.array([3.0, np.nan]), "b": pa.array([b"x", b""]), "c": pa.array([0.5, 2.0], pa.float32())}
    assert hash_rows(pa.table(other)).to_pylist() == hashes
    assert hash_rows(pa.table(row | {"a": pa.array(["3", None])})).to_pylist() == hashes
    assert len({*hashes, *hash_rows(pa.table(row | {"b": ["x", None]})).to_pylist()}) == 3


def test_a_moment_hashes_alike_in_every_unit():
    days = pa.array([19_000, -3, None], pa.date32())
    in_ms = days.cast(pa.timestamp("ms"))
    for kind in (pa.date64(), *map(pa.timestamp, ("s", "us", "ns"))):
        assert hash_values(in_ms.cast(kind)).tolist() == hash_values(days).tolist() == hash_values(in_ms).tolist()
    for number in (1_650_816_000_123_456_789, -1):
        fine = pa.array([number, number // 1000 * 1000], pa.timestamp("ns"))
        coarse = fine.cast(pa.timestamp("us"), safe=False).slice(1)
        assert hash_values(fine)[0] != hash_values(fine)[1] == hash_values(coarse)[0]


def test_decimals_that_no_float_tells_apart_are_not_equal():
    for numbers in (["12345678901234567.01", "12345678901234567.02"], [str(2**70) + ".00", str(2**70 + 1) + ".00"]):
        first, second = hash_values(pa.array(map(Decimal, numbers), pa.decimal128(38, 2)))
        assert first != second
    assert hash_values(pa.array([Decimal("1.50")], pa.decimal128(38, 20))) == hash_values(pa.array([1.5]))


def test_a_null_is_not_a_zero_or_an_empty_string():
    assert hash_strings(pa.array([None, "b", None])).tolist() == [fnv_1a(word) for word in ("", "b", "")]
    for kind, empty in ((pa.int64(), 0), (pa.float64(), 0.0), (pa.string(), ""), (pa.bool_(), False)):
        null, value = hash_values(pa.array([None, empty], kind)).tolist()
        assert null != value


def test_a_row_hash_sees_every_column_by_name():
    row = {"a": [1], "b": [2], "c": ["x"], "d": [0.5]}
    hashes = {hash_rows(pa.table(row)).to_pylist()[0]}
    for change in ({"a": [2], "b": [1]}, {"a": [3]}, {"b": [None]}, {"c": ["y"]}, {"d": [0.25]}):
        hashes.add(hash_rows(pa.table(row | change)).to_pylist()[0])
    assert len(hashes) == 6
    reordered = pa.table(dict(reversed(row.items())))
    assert hash_rows(reordered).to_pylist() == hash_rows(pa.table(row)).to_pylist()


def test_two_rows_that_differ_in_two_columns_do_not_cancel_out():
    # Sums of plain column hashes would be equal for these two.
    table = pa.table({"a": [1, 2], "b": [2, 1]})
    first, second = hash_rows(table).to_pylist()
    assert first != second


def test_a_list_cannot_be_hashed():
    with pytest.raises(TypeError, match="list"):
        hash_values(pa.array([[1]]))
