"""Prepared data whose checksums fit, but which a stranger or a faulty writer has made: refused in one line and at once,
or the same rows."""

import copy
import json
import os
import random
import time

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from data_pipeline import shard_files
from data_pipeline.manifest import MANIFEST_NAME, prepared_columns
from data_pipeline.reading import open_prepared, open_split
from data_pipeline.shards import WRITE_OPTIONS
from rankmixer_dist.batch import Position
from rankmixer_dist.checksum import file_checksum, json_checksum
from rankmixer_dist.errors import UserError
from tests.unit.test_damaged_data import SPLITS, prepared, refusal, small, values  # noqa: F401

PATIENCE_S = 20.0
"""Of the processor."""


def forge(config, content):
    """Writes a manifest with a checksum that fits."""
    content = {key: value for key, value in content.items() if key != "checksum"}
    path = config.data.prepared / MANIFEST_NAME
    path.write_text(json.dumps({"checksum": json_checksum(content), **content}))


def content_of(good):
    return json.loads(next(iter(good.values())))


def read(config, *, verify=True):
    """The rows of both splits, or the line that refuses them."""
    config = config.model_copy(update={"data": config.data.model_copy(update={"verify_checksums": verify})})
    start = time.process_time()
    try:
        manifest = open_prepared(config, SPLITS, rank=0, world_size=1)
        ranks = {"rank": 0, "world_size": 1, "batch_size": 16, "training": True, "pin_memory": False}
        return [values(open_split(config, manifest, split, **ranks).epoch(Position(0, 0))) for split in SPLITS]
    except UserError as error:
        return refusal(error)
    finally:
        assert time.process_time() - start < PATIENCE_S


def test_300_forged_manifests(prepared):  # noqa: F811
    config, _, good = prepared
    expected, refused = read(config), 0
    assert not isinstance(expected, str)
    for seed in range(300):
        rng = random.Random(seed)
        content = content_of(good)
        shard = rng.choice([shard for split in SPLITS for shard in content["splits"][split]])
        holder, key = rng.choice(
            [(content, "row_group_rows"), *((shard, key) for key in ("path", "rows", "row_groups"))]
        )
        others = ["/dev/zero", "..", "", "test-00000.parquet", "\0", "a\nb"] if key == "path" else []
        value = holder[key]
        if key != "path":
            others = [value + 1, value - 1, value * 2, -value, 0, 1.5, 10**9, 10**12, 2**70, None, True, []]
        holder[key] = rng.choice(others)
        forge(config, content)
        found = read(config, verify=bool(seed % 2))
        refused += isinstance(found, str)
        assert isinstance(found, str) or found == expected, (seed, key, holder[key])
    assert refused > 270


@pytest.mark.parametrize("verify", [True, False])
@pytest.mark.parametrize(("rows", "row_groups", "row_group_rows"), [(8 * 10**9, 10**9, 8), (10**12, 1, 10**12)])
def test_rows_that_no_file_has_take_no_memory(prepared, rows, row_groups, row_group_rows, verify):  # noqa: F811
    config, _, good = prepared
    content = content_of(good)
    for shards in content["splits"].values():
        for shard in shards:
            shard |= {"rows": rows, "row_groups": row_groups}
    content["row_group_rows"] = row_group_rows
    forge(config, content)
    found = read(config.model_copy(update={"eval": config.eval.model_copy(update={"split": "train"})}), verify=verify)
    assert "holds no rows of split 'test'" in found or "the manifest says" in found
    with pytest.raises(
        UserError, match=r"holds 128 rows in 16 row groups, the manifest says .*; prepare the data again"
    ):
        open_prepared(config, ["train"], rank=0, world_size=1)


@pytest.mark.parametrize("verify", [True, False])
@pytest.mark.parametrize("kind", ["device", "pipe", "above", "link", "folder"])
def test_a_shard_elsewhere_or_that_is_no_file(prepared, tmp_path, kind, verify):  # noqa: F811
    config, _, good = prepared
    folder, content = config.data.prepared, content_of(good)
    shard = content["splits"]["test"][0]
    outside = tmp_path / "shard.parquet"
    outside.write_bytes(good[folder / shard["path"]])
    paths = {"device": "/dev/zero", "above": os.path.relpath(outside, folder)}
    shard["path"] = paths.get(kind, kind)
    if kind == "pipe":
        os.mkfifo(folder / kind)
    elif kind == "link":
        (folder / kind).symlink_to(outside)
    elif kind == "folder":
        (folder / kind).mkdir()
    forge(config, content)
    try:
        found = read(config, verify=verify)
        assert isinstance(found, str) and ("lies outside of" in found or "not a regular file" in found), found
    finally:
        if kind in ("pipe", "link"):
            (folder / kind).unlink()
        elif kind == "folder":
            (folder / kind).rmdir()


@pytest.mark.parametrize("verify", [True, False])
def test_a_manifest_that_is_a_pipe_does_not_hang(prepared, verify):  # noqa: F811
    config, _, good = prepared
    path = config.data.prepared / MANIFEST_NAME
    path.unlink()
    os.mkfifo(path)
    try:
        assert "not a regular file" in read(config, verify=verify)
    finally:
        path.unlink()
        path.write_bytes(next(iter(good.values())))


def varint(value):
    """As a Parquet footer holds an integer."""
    value, parts = value << 1, []
    while value > 127:
        parts.append(value & 127 | 128)
        value >>= 7
    return bytes([*parts, value])


@pytest.mark.parametrize("honest", [True, False])
def test_a_row_group_larger_than_memory(prepared, monkeypatch, honest):  # noqa: F811
    config, _, good = prepared
    content = copy.deepcopy(content_of(good))
    shard = content["splits"]["test"][0]
    path = config.data.prepared / shard["path"]
    table = pq.read_table(path)
    columns = prepared_columns(config.features, has_truth=False)
    name = next(field.name for field in columns if pa.types.is_list(field.type))
    # 24 MB of ids in the first row; half of them make noise, so that they do not pack well.
    ids = np.concatenate([np.zeros(1_500_000, np.int64), np.random.default_rng(0).integers(0, 2**60, 1_500_000)])
    place = table.column_names.index(name)
    lists = [ids, *([np.zeros(1, np.int64)] * (table.num_rows - 1))]
    table = table.set_column(place, table.schema.field(name), pa.array(lists, type=table.schema.field(name).type))
    pq.write_table(table, path, row_group_size=8, **WRITE_OPTIONS)
    if not honest:  # the footer says that little comes out of it
        columns = (pq.read_metadata(path).row_group(0).column(index) for index in range(200))
        column = next(column for column in columns if column.path_in_schema.startswith(f"{name}."))
        size = column.total_uncompressed_size
        assert path.read_bytes().count(varint(size)) == 1
        path.write_bytes(path.read_bytes().replace(varint(size), varint(size // 10)))
    else:
        monkeypatch.setattr(shard_files, "_SMALL", 2**20)
        monkeypatch.setattr(shard_files, "_ROOM_SHARE", 2**20 / shard_files.total_memory())
    shard["checksum"] = file_checksum(path)
    forge(config, content)
    told = "too much for this machine" if honest else f"bytes of column '{name}.list.element' are to unpack to"
    found = read(config)
    assert isinstance(found, str) and told in found and "row group 0 cannot be read" in found, found
