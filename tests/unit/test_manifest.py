"""The manifest: what it refuses, and which changes of a schema make prepared data another's."""

import json
import math

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from data_pipeline.key_range import KeyRange
from data_pipeline.manifest import (
    MANIFEST_NAME,
    Manifest,
    NumericStatistics,
    Shard,
    prepared_columns,
    prepared_meaning,
    read_manifest,
    schema_hash,
    verify_checksums,
)
from rankmixer_dist.checksum import file_checksum, text_checksum
from rankmixer_dist.errors import UserError
from rankmixer_dist.schema import Schema
from tests.changes import changed

DECLARED = {
    "tables": {
        "video": {"rows": 50, "dim": 8},
        "tag": {"rows": 9, "dim": 4},
        "exact": {"rows": 10, "dim": 4, "ids": "identity"},
        "age": {"rows": 10, "dim": 4, "ids": "identity"},
    },
    "groups": {"user": 1, "video": 2},
    "features": {
        "video_id": {"kind": "id", "table": "video", "group": "video"},
        "watched": {"kind": "sequence", "table": "video", "query": "video_id", "max_length": 5, "group": "user"},
        "tags": {"kind": "multi_id", "table": "tag", "separator": ",", "group": "video"},
        "length": {"kind": "numeric", "column": "length_s", "group": "video"},
        "shown": {"kind": "id", "table": "exact", "group": "video"},
        "seen": {"kind": "multi_id", "table": "exact", "group": "user"},
        "age": {"kind": "id", "table": "age", "boundaries": [10, 30], "group": "user"},
    },
    "tasks": {"finish": {}, "like": {"column": "is_like"}},
}


def schema_with(**changes):
    """The declared schema with values replaced, by path: `features__length__transform="log1p"`."""
    return Schema.model_validate(changed(DECLARED, changes))


@pytest.fixture
def standing(tmp_path):
    """A folder with two shards and its manifest."""
    for name in ("train-00000.parquet", "train-00001.parquet"):
        pq.write_table(pa.table({"x": range(100)}), tmp_path / name)
    shard = Shard(
        path="train-00000.parquet",
        rows=100,
        row_groups=1,
        first_timestamp=1,
        last_timestamp=2,
        labelled={"finish": 100, "like": 0},
        positives={"finish": 25, "like": 0},
        checksum=file_checksum(tmp_path / "train-00000.parquet"),
    )
    manifest = Manifest(
        source="test",
        schema_hash=schema_hash(schema_with()),
        meaning=prepared_meaning(schema_with()),
        columns={"x": "int64"},
        row_group_rows=100,
        splits={"train": [shard, shard.model_copy(update={"path": "train-00001.parquet"})], "test": []},
        numerics={"length": NumericStatistics(count=3, mean=0.1, std=1 / 3)},
        key_ranges={
            "shown": KeyRange(rows=10, beyond=0, highest=5),
            "seen": KeyRange(rows=10, beyond=0, highest=None),
        },
        raw_rows=201,
        set_aside={"duplicate": 1},
        prepared_from={"splits": {"train": [0, 5]}},
    )
    manifest.write(tmp_path)
    return tmp_path, manifest


def rewrite(folder, **values):
    """Changes values of the manifest, its checksum along with them."""
    path = folder / MANIFEST_NAME
    content = json.loads(path.read_text()) | values
    del content["checksum"]
    content["checksum"] = text_checksum(json.dumps(content, sort_keys=True).encode())
    path.write_text(json.dumps(content))


def test_what_is_written_is_read_back(standing):
    folder, manifest = standing
    assert read_manifest(folder, schema_with()) == manifest
    assert sorted(path.name for path in folder.iterdir()) == [
        MANIFEST_NAME,
        "train-00000.parquet",
        "train-00001.parquet",
    ]
    assert manifest.rows("train") == 200
    assert manifest.base_rate("train", "finish") == 0.25
    assert math.isnan(manifest.base_rate("train", "like"))  # no label is known
    assert math.isnan(manifest.base_rate("test", "finish"))


def test_a_manifest_of_data_that_holds_rows_of_tables_is_refused(standing):
    rewrite(standing[0], format_version=4)
    with pytest.raises(UserError, match=r"manifest\.json: format version 4, this is 5; prepare the data again$"):
        read_manifest(standing[0], schema_with())


def test_a_folder_without_a_manifest_is_refused(tmp_path):
    with pytest.raises(UserError, match=r"no such file; run launch/preprocess\.py"):
        read_manifest(tmp_path, schema_with())


@pytest.mark.parametrize(
    ("values", "problem"),
    [
        ({"format_version": 0}, "format version 0"),
        ({"format_version": "3"}, "format version '3'"),
        ({"splits": {"train": [{"path": "a"}]}}, "Field required"),
        ({"surprise": 1}, "Extra inputs"),
        ({"row_group_rows": 7}, "train-00000.parquet: 100 rows are not 1 row groups"),
        ({"numerics": {}}, "of other tasks and numbers"),
        ({"numerics": {"length": {"count": 3, "mean": math.nan, "std": 1.0}}}, "finite number"),
        ({"numerics": {"length": {"count": 3, "mean": 0.0, "std": -1.0}}}, "greater than or equal to 0"),
    ],
)
def test_a_manifest_of_another_version_is_refused(standing, values, problem):
    rewrite(standing[0], **values)
    with pytest.raises(UserError, match=problem):
        read_manifest(standing[0], schema_with())


def test_a_manifest_cut_short_is_refused(standing):
    path = standing[0] / MANIFEST_NAME
    path.write_bytes(path.read_bytes()[:-9])
    with pytest.raises(UserError, match="cannot be read as JSON .* prepare the data again"):
        read_manifest(standing[0], schema_with())


def test_json_that_is_no_manifest_is_refused(standing):
    (standing[0] / MANIFEST_NAME).write_text("[3]")
    with pytest.raises(UserError, match="not a manifest but list"):
        read_manifest(standing[0], schema_with())


@pytest.mark.parametrize(
    "change", [{"row_group_rows": 101}, {"numerics": {}}, {"checksum": "0" * 32}, {"checksum": None}, {"surprise": 1}]
)
def test_a_manifest_changed_after_it_was_written_is_refused(standing, change):
    path = standing[0] / MANIFEST_NAME
    path.write_text(json.dumps(json.loads(path.read_text()) | change))
    with pytest.raises(UserError, match=r"manifest\.json: its checksum is not that of its content; .* again"):
        read_manifest(standing[0], schema_with())


@pytest.mark.parametrize(
    "change",
    [
        {"tables__video__ids": "identity"},
        {"features__watched__max_length": 4},
        {"features__tags__separator": ";"},
        {"features__age__boundaries": [10, 20]},
        {"features__age__boundaries": None},
        {"features__length__transform": "log1p"},
        {"features__length__column": "length_ms"},
        {"tasks__like__column": "like"},
        {"tasks__like__unknown": "mask"},
        {"features__other": {"kind": "numeric", "group": "user"}},
    ],
)
def test_another_meaning_of_the_columns_is_another_hash(standing, change):
    other = schema_with(**change)
    assert schema_hash(other) != schema_hash(schema_with())
    with pytest.raises(UserError, match=r"another schema: (features|tasks)\.[\w.]+ was .* and is .*; run"):
        read_manifest(standing[0], other)


@pytest.mark.parametrize(
    "change",
    [
        {"tables__video__rows": 51},
        {"tables__exact__rows": 9},
        {"tables__tag__dim": 16},
        {"tables__video__salt": "film"},
        {"tables__video__salt": "tag"},
        {"tables__age__ids": "hash"},  # no more than buckets stand there
        {"features__tags__table": "video"},
        {"features__watched__query": None, "features__watched__pooling": "mean"},
        {"features__length__column": "length_s"},
        {"groups__video": 4},
        {"features__length__group": "user"},
        {"features__tags__pooling": "sum"},
        {"tasks__finish__weight": 2.0},
    ],
)
def test_what_prepared_data_does_not_hold_keeps_the_hash(standing, change):
    if change.get("features__tags__table"):
        change = change | {"tables": {name: t for name, t in DECLARED["tables"].items() if name != "tag"}}
    assert schema_hash(schema_with(**change)) == schema_hash(schema_with())
    assert read_manifest(standing[0], schema_with(**change)) == standing[1]


def test_the_order_of_keys_keeps_the_hash():
    turned = {part: dict(reversed(declared.items())) for part, declared in DECLARED.items()}
    assert schema_hash(Schema.model_validate(turned)) == schema_hash(schema_with())


def test_a_table_may_have_another_name():
    tables = {("clip" if name == "video" else name): table for name, table in DECLARED["tables"].items()}
    moved = {"tables": tables, "features__video_id__table": "clip", "features__watched__table": "clip"}
    assert schema_hash(schema_with(**moved)) == schema_hash(schema_with())


@pytest.mark.parametrize("feature", ["shown", "seen"])
@pytest.mark.parametrize(
    ("rows", "beyond", "told"),
    [
        (7, 0, "has 7 rows, but feature '{}' holds id 6, which needs 8: set features.tables.exact.rows=8, or prepare "),
        (8, 3, None),
        (9, 3, None),
        (10, 3, None),
        (11, 0, None),
        (
            11,
            3,
            "has 11 rows, but had 10 when the data was prepared, for which 3 of the log's rows with a higher id of ",
        ),
    ],
)
def test_an_identity_table_may_have_the_rows_that_the_prepared_ids_allow(standing, feature, rows, beyond, told):
    folder, manifest = standing
    ranges = dict(manifest.key_ranges)
    ranges[feature] = KeyRange(rows=10, beyond=beyond, highest=6)
    manifest.model_copy(update={"key_ranges": ranges}).write(folder)
    other = schema_with(tables__exact__rows=rows)
    assert schema_hash(other) == schema_hash(schema_with())
    if told is None:
        read_manifest(folder, other)
        return
    with pytest.raises(UserError) as refused:
        read_manifest(folder, other)
    assert str(refused.value).startswith(f"{folder / MANIFEST_NAME}: table 'exact' {told.format(feature)}")
    assert "\n" not in str(refused.value)


@pytest.mark.parametrize("ranges", [{}, {"shown": {"rows": 10, "beyond": 0, "highest": None}}])
def test_a_manifest_that_does_not_tell_what_ids_it_holds_is_refused(standing, ranges):
    rewrite(standing[0], key_ranges=ranges)
    with pytest.raises(UserError, match="its ids are of other features; prepare the data again"):
        read_manifest(standing[0], schema_with())


def test_a_changed_and_a_missing_shard_are_named(standing):
    folder, manifest = standing
    shards = manifest.splits["train"]
    verify_checksums(folder, shards)
    path = folder / shards[0].path
    good = path.read_bytes()
    path.write_bytes(good[:50] + bytes([good[50] ^ 1]) + good[51:])
    with pytest.raises(UserError, match=r"train-00000\.parquet: its checksum"):
        verify_checksums(folder, shards)
    path.unlink()
    with pytest.raises(UserError, match=r"train-00000\.parquet: the manifest names it"):
        verify_checksums(folder, shards)


def test_prepared_columns_in_file_order():
    columns = prepared_columns(schema_with(), has_truth=True)
    assert columns.names == [
        *("row_id", "user_id", "timestamp", "label_finish", "label_like", "truth_finish", "truth_like"),
        *("video_id", "watched", "tags", "length", "shown", "seen", "age"),
    ]
    assert [field.name for field in columns if field.nullable] == ["video_id", "shown", "age"]
    ids = pa.list_(pa.field("item", pa.int64(), nullable=False))
    assert [columns.field(name).type for name in ("video_id", "watched", "tags", "length")] == [
        *(pa.int64(), ids, ids, pa.float32()),
    ]
    assert "truth_like" not in prepared_columns(schema_with(), has_truth=False).names
