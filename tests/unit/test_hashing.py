"""Hashes of strings against a plain loop, of values across types, and of rows."""

import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from data_pipeline.hashing import hash_ids, hash_rows, hash_strings, hash_values, read_ids


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


def test_ids_stay_clear_of_the_missing_row():
    assert set(hash_ids(read_ids(pa.array(range(1000))), salt="t", rows=2).tolist()) == {1}


def test_a_list_cannot_be_hashed():
    with pytest.raises(TypeError, match="list"):
        hash_values(pa.array([[1]]))
