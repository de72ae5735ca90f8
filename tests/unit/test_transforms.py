"""Raw columns to prepared ones: pinned hashes, keys, buckets, sequences, labels, and what is set aside."""

import numpy as np
import pyarrow as pa
import pytest

from data_pipeline.groups import KEY, Grouping
from data_pipeline.hashing import hash_strings
from data_pipeline.transforms import prepare
from rankmixer_dist.schema import Schema

SCHEMA = Schema.model_validate(
    {
        "tables": {
            "exact": {"rows": 6, "dim": 4, "ids": "identity"},
            "hashed": {"rows": 50, "dim": 4},
            "bucket": {"rows": 5, "dim": 4, "ids": "identity"},
        },
        "groups": {"all": 1},
        "features": {
            "video": {"kind": "id", "table": "exact", "group": "all"},
            "watched": {"kind": "sequence", "table": "exact", "query": "video", "max_length": 3, "group": "all"},
            "word": {"kind": "id", "table": "hashed", "group": "all"},
            "tags": {"kind": "multi_id", "table": "hashed", "separator": ",", "group": "all"},
            "length": {"kind": "id", "table": "bucket", "boundaries": [10, 20, 30], "group": "all"},
            "log_length": {"kind": "numeric", "column": "length", "transform": "log1p", "group": "all"},
        },
        "tasks": {"finish": {}},
    }
)


def prepared(schema=SCHEMA, **columns):
    """Five good rows with some columns replaced, prepared: (rows, reasons)."""
    raw = {
        "row_id": [0, 1, 2, 3, 4],
        "user_id": [7, 7, 8, 9, 9],
        "timestamp": [10, 11, 12, 13, 14],
        "finish": [0, 1, 0, 1, 0],
        "video": [0, 4, None, 2, 1],
        "watched": [[], [0, 1, 2, 3, 4], None, [4], [1, 0]],
        "word": ["a", "b", None, "a", ""],
        "tags": ["1,2", "", None, "3", "1"],
        "length": [5.0, 10.0, None, 29.9, 1e6],
    } | columns
    if isinstance(raw["watched"], list):
        raw["watched"] = pa.array(raw["watched"], pa.list_(pa.int64()))
    table = pa.table(raw)
    done = prepare(table, schema, truth_columns={}, time_ranges={"all": (0, 100)})
    return done.rows.to_pylist(), done.set_aside.to_pylist()


def test_hashes_are_pinned():
    # FNV-1a 64 of "" and "a", from its authors' test vectors.
    assert hash_strings(pa.array(["", "a"])).tolist() == [0xCBF29CE484222325, 0xAF63DC4C8601EC8C]


def test_values():
    rows, aside = prepared()
    assert not aside
    assert [row["video"] for row in rows] == [0, 4, None, 2, 1]
    assert [row["watched"] for row in rows] == [[], [2, 3, 4], [], [4], [1, 0]]
    assert [row["length"] for row in rows] == [0, 1, None, 2, 3]
    assert [row["label_finish"] for row in rows] == [0, 1, 0, 1, 0]
    np.testing.assert_allclose([row["log_length"] for row in rows], np.log1p([5, 10, np.nan, 29.9, 1e6]), rtol=1e-6)
    a, b = hash_strings(pa.array(["a", "b"])).view(np.int64).tolist()
    assert [row["word"] for row in rows] == [a, b, None, a, None]
    assert [row["tags"] for row in rows] == [[1, 2], [], [], [3], [1]]


@pytest.mark.parametrize(
    ("column", "values", "reason"),
    [
        ("finish", [0, 1, 0.5, 1, 0], "label_not_0_or_1"),
        ("finish", [0, 1, None, 1, 0], "label_not_0_or_1"),
        ("video", [0, 1, 5, 1, 0], "id_beyond_table"),
        ("video", [0, 1, -1, 1, 0], "id_out_of_range"),
        ("watched", [[], [], [0, 5], [], []], "id_beyond_table"),
        ("user_id", [7, 7, None, 9, 9], "missing_user_id"),
        ("timestamp", [10, 11, None, 13, 14], "missing_timestamp"),
        ("timestamp", [10, 11, 100, 13, 14], "outside_splits"),
    ],
)
def test_a_bad_row_is_set_aside_with_its_reason(column, values, reason):
    rows, aside = prepared(**{column: values})
    assert [row["row_id"] for row in rows] == [0, 1, 3, 4]
    assert [(row["row_id"], row["set_aside_reason"]) for row in aside] == [(2, reason)]


def test_an_unknown_label_is_masked_where_the_task_says_so():
    masked = SCHEMA.model_dump(mode="json")
    masked["tasks"] = {"finish": {"unknown": "mask"}, "like": {"unknown": "mask"}}
    columns = {"like": [1.0, None, 0.0, None, 0.5], "finish": [0.0, 1.0, None, float("nan"), 1.0]}
    rows, aside = prepared(schema=Schema.model_validate(masked), **columns)
    assert [row["row_id"] for row in rows] == [0, 1, 2]
    np.testing.assert_array_equal([row["label_finish"] for row in rows], [0, 1, np.nan])
    np.testing.assert_array_equal([row["label_like"] for row in rows], [1, np.nan, 0])
    assert [(row["row_id"], row["set_aside_reason"]) for row in aside] == [
        (3, "no_label_known"),
        (4, "label_not_0_or_1"),
    ]


def test_an_id_has_one_key_alone_in_a_list_and_in_a_joined_string():
    ids = [12, 0, -5, 2**63 - 1, 7]
    joined = [f" {number},007\t, {number}" for number in ids]
    declared = SCHEMA.model_dump(mode="json")
    declared["features"]["watched"] = {"kind": "sequence", "table": "hashed", "pooling": "mean", "group": "all"}
    lists = pa.array([[number, 7] for number in ids], pa.list_(pa.int64(), 2))
    rows, aside = prepared(schema=Schema.model_validate(declared), word=ids, tags=joined, watched=lists)
    assert not aside
    other = hash_strings(pa.array(["007"])).view(np.int64)[0]
    assert [row["word"] for row in rows] == ids
    for row, number in zip(rows, ids, strict=True):
        assert row["watched"] == [number, 7]
        assert row["tags"] == [number, other, number]


def test_rows_that_a_larger_table_would_take_are_counted_by_feature():
    raw = {"row_id": range(5), "user_id": [7] * 5, "timestamp": [10, 11, 12, 13, 100], "finish": [0] * 5}
    raw |= {"video": [9, -1, None, 4, 9], "watched": pa.array([[9, 8], [1], [5], [], [9]]), "word": ["a"] * 5}
    raw |= {"tags": ["1"] * 5, "length": [99.0] * 5}
    done = prepare(pa.table(raw), SCHEMA, truth_columns={}, time_ranges={"all": (0, 100)})
    assert done.beyond_table == {"video": 1, "watched": 2}  # the last row is of no split


def test_lists_of_a_fixed_size_may_all_be_null():
    rows, aside = prepared(watched=pa.array([None] * 5, pa.list_(pa.int64(), 3)))
    assert not aside
    assert [row["watched"] for row in rows] == [[]] * 5


@pytest.mark.parametrize("hashes", [None, [5, 6, 5, 5, 6]])
def test_equal_rows_without_an_id_have_one_group_to_be_found_in(hashes):
    """Rows of one group go to one partition, where all but the first of equal ones are dropped."""
    raw = {"row_id": range(5), "user_id": [7] * 5, "timestamp": [10] * 5, "finish": [0] * 5, "video": [1] * 5}
    raw |= {"watched": pa.array([[1]] * 5), "word": ["a"] * 5, "tags": ["1"] * 5, "length": [99.0] * 5}
    raw |= {"request": pa.nulls(5, pa.int64())} | ({} if hashes is None else {"row_hash": hashes})
    grouping = Grouping("request", None, {})
    done = prepare(pa.table(raw), SCHEMA, truth_columns={}, time_ranges={"all": (0, 100)}, grouping=grouping)
    assert len({*zip(hashes or range(5), done.rows[KEY].to_pylist(), strict=True)}) == len({*(hashes or range(5))})
    assert len({*done.rows[KEY].to_pylist()}) == len({*(hashes or range(5))})
