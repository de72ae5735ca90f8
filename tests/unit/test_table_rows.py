"""From keys to rows: the rows that ids always had, of every type and table, and no row for a key beyond its table."""

import numpy as np
import pyarrow as pa
import pytest

from data_pipeline.hashing import BLOCK, hash_strings, mix, read_ids
from data_pipeline.table_rows import NoRowError, TableRows, with_table_rows
from data_pipeline.transforms import prepare
from rankmixer_dist.schema import Schema

TABLES = {
    "word": {"rows": 1000, "dim": 4},
    "tiny": {"rows": 2, "dim": 4},
    "large": {"rows": 1 << 40, "dim": 4, "salt": "other"},
    "exact": {"rows": 6, "dim": 4, "ids": "identity"},
    "bucket": {"rows": 50, "dim": 4},
}
FEATURES = {
    "word": {"kind": "id", "table": "word", "group": "all"},
    "words": {"kind": "multi_id", "table": "word", "group": "all"},
    "tiny": {"kind": "multi_id", "table": "tiny", "group": "all"},
    "video": {"kind": "id", "table": "exact", "group": "all"},
    "length": {"kind": "id", "table": "bucket", "boundaries": [10, 20, 30], "group": "all"},
    "watched": {"kind": "sequence", "table": "exact", "pooling": "mean", "group": "all"},
    "large": {"kind": "sequence", "table": "large", "pooling": "mean", "max_length": 99, "group": "all"},
}
SCHEMA = Schema.model_validate({"tables": TABLES, "groups": {"all": 1}, "features": FEATURES, "tasks": {"finish": {}}})


def row_of(key, *, salt, rows):
    """The row of a key of 64 bits, in whole numbers of Python."""

    def mixed(value):
        value = (value + 0x9E3779B97F4A7C15) % 2**64
        value = (value ^ (value >> 30)) * 0xBF58476D1CE4E5B9 % 2**64
        value = (value ^ (value >> 27)) * 0x94D049BB133111EB % 2**64
        return value ^ (value >> 31)

    def fnv_1a(text):
        value = 0xCBF29CE484222325
        for byte in text.encode():
            value = (value ^ byte) * 0x100000001B3 % 2**64
        return value

    return 1 + mixed(mixed(int(key) % 2**64) ^ fnv_1a(salt)) % (rows - 1)


def rows_of(feature, keys, schema=SCHEMA):
    found = np.array(keys, np.int64)
    TableRows(schema, [feature])(found, [len(found)])
    return found.tolist()


def test_rows_are_pinned():
    """Those that data prepared as rows of tables held, and checkpoints were trained with."""
    tables = {"user": {"rows": 1000, "dim": 4}, "tag": {"rows": 1000, "dim": 4}}
    features = {name: {"kind": "id", "table": name, "group": "all"} for name in tables}
    declared = {"tables": tables, "features": features, "groups": {"all": 1}, "tasks": {"finish": {}}}
    schema = Schema.model_validate(declared)
    assert rows_of("user", [0, 1, 27284], schema) == [695, 690, 694]
    words = hash_strings(pa.array(["food", "Ünïcode"])).view(np.int64)
    assert rows_of("tag", words, schema) == [749, 383]


def some_values(seed):
    """Ids of every type that a raw column may have, some missing."""
    rng = np.random.default_rng(seed)
    wide = rng.integers(-(2**63), 2**63, 40)
    wide[:6] = 0, -1, 1, 2**63 - 1, -(2**63), 7
    words = ["", "007", "7", "-1", str(2**63), str(2**64 - 1), "Ünïcode", " 7", *map(str, wide[:10].tolist())]
    missing = rng.random(40) < 0.2
    return [
        pa.array(wide, mask=missing),
        pa.array(wide.view(np.uint64), mask=missing),
        pa.array(wide.astype(np.int8), mask=missing),
        pa.array((wide % 2**50).astype(np.float64), mask=missing),
        pa.array(words),
        pa.array([word.encode() for word in words]),
        pa.array(words).dictionary_encode(),
        pa.array(wide % 2 == 0, mask=missing),
        pa.nulls(3),
    ]


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize("table", ["word", "tiny", "large"])
def test_ids_of_every_type_have_the_rows_that_they_had(seed, table):
    """What hashed ids when data was prepared took 64 bits, salt and rows, and nothing else of an id."""
    feature = {**FEATURES["word"], "table": table}
    declared = {"tables": {table: TABLES[table]}, "features": {"id": feature}}
    schema = Schema.model_validate(SCHEMA.model_dump(mode="json") | declared)
    for values in some_values(seed):
        raw = {name: np.arange(len(values)) for name in ("row_id", "user_id", "timestamp")}
        raw = pa.table(raw | {"finish": np.zeros(len(values)), "id": values})
        done = prepare(raw, schema, truth_columns={}, time_ranges={"all": (0, 99)})
        assert done.rows.num_rows == len(values)
        ids = read_ids(values)
        wanted = [
            row_of(bits, salt=schema.salt(table), rows=TABLES[table]["rows"]) if present else 0
            for bits, present in zip(ids.bits.tolist(), ids.present.tolist(), strict=True)
        ]
        assert with_table_rows(done.rows, schema)["id"].to_pylist() == wanted, values.type


@pytest.mark.parametrize("most", [3, 3 * BLOCK])
def test_features_of_a_batch_are_taken_together(most):
    rng = np.random.default_rng(most)
    features = [*FEATURES, "words", "video", "length", "tiny"]
    for _ in range(4):
        counts = rng.integers(0, most, len(features)).tolist()
        counts[rng.integers(len(features))] = 0
        limits = {"video": 5, "watched": 5, "length": 4}
        keys = [
            rng.integers(0, limits[name], count) if name in limits else rng.integers(-(2**63), 2**63, count)
            for name, count in zip(features, counts, strict=True)
        ]
        together = np.concatenate(keys)
        TableRows(SCHEMA, features)(together, counts)
        found = np.split(together, np.cumsum(counts)[:-1])
        for name, own, rows in zip(features, keys, found, strict=True):
            if name in limits:
                assert rows.tolist() == (own + 1).tolist()
                continue
            table = SCHEMA.tables[SCHEMA.features[name].table]
            assert not len(rows) or (rows.min() >= 1 and rows.max() < table.rows)
            salt = SCHEMA.salt(SCHEMA.features[name].table)
            for key, row in zip(own[:30].tolist(), rows[:30].tolist(), strict=True):
                assert row == row_of(key, salt=salt, rows=table.rows)
            mixed = mix(mix(own.view(np.uint64)) ^ hash_strings(pa.array([salt])))
            assert rows.tolist() == (mixed % np.uint64(table.rows - 1) + np.uint64(1)).tolist()


@pytest.mark.parametrize(("feature", "end"), [("video", 5), ("watched", 5), ("length", 4)])
def test_a_key_beyond_its_table_has_no_row(feature, end):
    assert rows_of(feature, [0, end - 1]) == [1, end]
    for key in (end, -1, 2**63 - 1, -(2**63)):
        for keys in ([key], [0, key], [key, 0]):
            with pytest.raises(NoRowError, match=f"feature '{feature}' holds id {key}"):
                rows_of(feature, keys)


def test_a_renamed_table_keeps_its_rows_by_its_salt():
    declared = SCHEMA.model_dump(mode="json")
    declared["tables"]["clip"] = declared["tables"].pop("word") | {"salt": "word"}
    for name in ("word", "words"):
        declared["features"][name]["table"] = "clip"
    assert rows_of("word", range(9), Schema.model_validate(declared)) == rows_of("word", range(9))
    declared["tables"]["clip"]["salt"] = None
    assert rows_of("word", range(9), Schema.model_validate(declared)) != rows_of("word", range(9))


def test_equal_ids_of_two_tables_land_on_unrelated_rows():
    declared = SCHEMA.model_dump(mode="json")
    declared["tables"] |= {name: {"rows": 1001, "dim": 4} for name in ("word", "tiny")}
    schema = Schema.model_validate(declared)
    left, right = (np.array(rows_of(feature, range(20_000), schema)) for feature in ("word", "tiny"))
    assert left.min() == 1
    assert left.max() == 1000
    # Under independence 20 of 20,000 agree; 4 standard deviations around it.
    assert 2 <= (left == right).sum() <= 38
    counts = np.bincount(left, minlength=1001)[1:]
    chi_square = ((counts - 20) ** 2 / 20).sum()
    assert abs(chi_square - 999) < 4 * (2 * 999) ** 0.5


def test_lists_and_missing_ids_become_rows_where_they_stand():
    rows = pa.table(
        {
            "video": pa.array([0, None, 4, None]),
            "words": pa.array([[1], [], [2, 3], [-1]], pa.list_(pa.int64())),
            "other": [1, 2, 3, 4],
        }
    ).slice(1)
    found = with_table_rows(rows, SCHEMA)
    first, second, last = rows_of("words", [2, 3, -1])
    assert found["video"].to_pylist() == [0, 5, 0]
    assert found["words"].to_pylist() == [[], [first, second], [last]]
    assert found["other"].to_pylist() == [2, 3, 4]
