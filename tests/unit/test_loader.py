"""The loader's promises: order, coverage, values, and errors that name the file."""

import threading

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch

from data_pipeline import loader as loader_module
from data_pipeline.key_range import identity_features
from data_pipeline.loader import Loader, SplitsInTurn
from data_pipeline.manifest import (
    Manifest,
    NumericStatistics,
    Shard,
    prepared_columns,
    read_manifest,
    schema_hash,
    verify_checksums,
)
from data_pipeline.table_rows import with_table_rows
from rankmixer_dist.batch import Position
from rankmixer_dist.checksum import file_checksum
from rankmixer_dist.errors import UserError
from rankmixer_dist.schema import Schema

GROUP_ROWS, SHARD_ROWS, ROWS = 8, 40, 107

SCHEMA = Schema.model_validate(
    {
        "tables": {
            "video": {"rows": 50, "dim": 4, "ids": "identity"},
            "user": {"rows": 50, "dim": 4},
            "tag": {"rows": 9, "dim": 4},
        },
        "groups": {"all": 1},
        "features": {
            "watched": {"kind": "sequence", "table": "video", "query": "video", "group": "all", "max_length": 5},
            "video": {"kind": "id", "table": "video", "group": "all"},
            "age": {"kind": "numeric", "group": "all"},
            "user": {"kind": "id", "table": "user", "group": "all"},
            "tags": {"kind": "multi_id", "table": "tag", "group": "all"},
        },
        "tasks": {"finish": {}, "like": {}},
    }
)


@pytest.fixture
def prepared(tmp_path):
    """A folder of prepared rows and the same rows as one Arrow table."""
    random = np.random.default_rng(5)

    def lists(most, rows):
        return [random.integers(-rows, rows, random.integers(0, most + 1)).tolist() for _ in range(ROWS)]

    columns = {
        "row_id": np.arange(ROWS) * 7,
        "user_id": random.integers(0, 9, ROWS),
        "timestamp": np.sort(random.integers(0, 10**12, ROWS)),
        "label_finish": random.integers(0, 2, ROWS).astype(np.float32),
        "label_like": random.integers(0, 2, ROWS).astype(np.float32),
        "truth_finish": random.random(ROWS).astype(np.float32),
        "truth_like": random.random(ROWS).astype(np.float32),
        "watched": [[abs(key) % 49 for key in row] for row in lists(5, 50)],
        "video": pa.array(random.integers(0, 49, ROWS), mask=random.random(ROWS) < 0.2),
        "age": np.where(random.random(ROWS) < 0.2, np.nan, random.random(ROWS)).astype(np.float32),
        "user": pa.array(random.integers(-(2**63), 2**63, ROWS), mask=random.random(ROWS) < 0.2),
        "tags": lists(3, 9),
    }
    table = pa.table(columns, schema=prepared_columns(SCHEMA, has_truth=True))
    shards = []
    for index, start in enumerate(range(0, ROWS, SHARD_ROWS)):
        part = table.slice(start, SHARD_ROWS)
        name = f"train-{index:05d}.parquet"
        pq.write_table(part, tmp_path / name, row_group_size=GROUP_ROWS)
        shards.append(
            Shard(
                path=name,
                rows=part.num_rows,
                row_groups=-(-part.num_rows // GROUP_ROWS),
                first_timestamp=part["timestamp"][0].as_py(),
                last_timestamp=part["timestamp"][-1].as_py(),
                labelled={"finish": 1, "like": 1},
                positives={"finish": 1, "like": 1},
                checksum=file_checksum(tmp_path / name),
            )
        )
    manifest = Manifest.model_validate(
        {
            "source": "test",
            "schema_hash": schema_hash(SCHEMA),
            "columns": {field.name: str(field.type) for field in table.schema},
            "row_group_rows": GROUP_ROWS,
            "splits": {"train": [shard.model_dump() for shard in shards]},
            "numerics": {"age": NumericStatistics(count=1, mean=0, std=1).model_dump()},
            "key_ranges": {name: {"rows": 50, "beyond": 0, "highest": 48} for name in identity_features(SCHEMA)},
            "raw_rows": ROWS,
            "set_aside": {},
            "prepared_from": {},
            "has_truth": True,
        }
    )
    manifest.write(tmp_path)
    return tmp_path, manifest, table


def make(
    prepared, *, split="train", rank=0, world_size=1, batch_size=24, shuffle="chunks", seed=3, with_truth=False, lanes=1
):
    folder, manifest, _ = prepared
    return Loader(
        folder, manifest, SCHEMA, split=split, batch_size=batch_size, rank=rank, world_size=world_size,
        shuffle=shuffle, seed=seed, lanes=lanes, prefetch=2, with_truth=with_truth, keys_of=("user", "video"),
    )  # fmt: skip


def row_ids(batch):
    return batch.row_id_B[batch.weight_B > 0].tolist()


def test_a_position_beyond_the_rows_is_refused(prepared):
    loader = make(prepared)
    assert list(loader.epoch(Position(0, loader.rows))) == []
    with pytest.raises(UserError, match=r"the data position is row [\d,]+ of [\d,]+; it is of other data"):
        next(loader.epoch(Position(0, loader.rows + 1)))


@pytest.mark.parametrize("world_size", [1, 2, 3, 4, 8])
@pytest.mark.parametrize("batch_size", [24, 48, 120])
@pytest.mark.parametrize("lanes", [1, 4])
@pytest.mark.parametrize("shuffle", ["chunks", "none"])
def test_every_rank_count_sees_the_same_global_batches_and_each_row_once(
    prepared, world_size, batch_size, lanes, shuffle
):
    def batches(**ranks):
        loader = make(prepared, batch_size=batch_size, lanes=lanes, shuffle=shuffle, **ranks)
        return [batch for batch, _ in loader.epoch(Position(1, 0))]

    expected = [row_ids(batch) for batch in batches()]
    shares = [batches(rank=rank, world_size=world_size) for rank in range(world_size)]
    assert {len(batches) for batches in shares} == {-(-ROWS // batch_size)}
    together = [[row for share in step for row in row_ids(share)] for step in zip(*shares, strict=True)]
    assert together == expected
    assert sorted(row for step in together for row in step) == [7 * row for row in range(ROWS)]
    for step, batches in enumerate(zip(*shares, strict=True)):
        assert {len(batch.weight_B) for batch in batches} == {batch_size // world_size}
        assert {batch.global_weight for batch in batches} == {len(expected[step])}


def test_epochs_and_seeds_shuffle_differently_and_repeat(prepared):
    def order(seed, epoch):
        return [row for batch, _ in make(prepared, seed=seed).epoch(Position(epoch, 0)) for row in row_ids(batch)]

    assert order(3, 0) == order(3, 0)
    assert len({tuple(order(seed, epoch)) for seed in (3, 4) for epoch in (0, 1)}) == 4


def test_no_shuffle_keeps_time_order(prepared):
    rows = [row for batch, _ in make(prepared, shuffle="none").epoch(Position(0, 0)) for row in row_ids(batch)]
    assert rows == [7 * row for row in range(ROWS)]


@pytest.mark.parametrize("world_size", [1, 2])
@pytest.mark.parametrize("lanes", [1, 4])
def test_a_position_continues_where_it_was_taken_whatever_the_ranks(prepared, world_size, lanes):
    whole = list(make(prepared, lanes=lanes).epoch(Position(2, 0)))
    for done, (_, position) in enumerate(whole, start=1):
        shares = [
            [
                row_ids(batch)
                for batch, _ in make(prepared, rank=rank, world_size=world_size, lanes=lanes).epoch(position)
            ]
            for rank in range(world_size)
        ]
        rest = [[row for share in step for row in share] for step in zip(*shares, strict=True)]
        assert rest == [row_ids(batch) for batch, _ in whole[done:]]


def test_values_are_those_of_the_rows(prepared):
    table = with_table_rows(prepared[2], SCHEMA).to_pandas().set_index("row_id")
    for rank in range(2):
        for batch, _ in make(prepared, rank=rank, world_size=2, batch_size=48, with_truth=True).epoch(Position(0, 0)):
            rows = table.loc[row_ids(batch)]
            real = len(rows)
            assert batch.user_id_B[:real].tolist() == rows["user_id"].tolist()
            assert batch.timestamp_B[:real].tolist() == rows["timestamp"].tolist()
            np.testing.assert_array_equal(batch.labels_BK[:real], rows[["label_finish", "label_like"]])
            np.testing.assert_array_equal(batch.truth_BK[:real], rows[["truth_finish", "truth_like"]])
            np.testing.assert_array_equal(batch.numerics_BN[:real], rows[["age"]])
            assert batch.ids.features == ("user", "tags", "watched", "video")
            values = batch.ids.values.split(batch.ids.lengths_FB.flatten().tolist())
            for place, feature in enumerate(batch.ids.features):
                found = [value.tolist() for value in values[place * 24 : place * 24 + 24]]
                wanted = [list(row) if np.ndim(row) else [int(row)] for row in rows[feature].tolist()]
                assert found == wanted + [[]] * (24 - real)
            keys, known = batch.keys_BS.numpy(), batch.known_BS.numpy()
            assert not known[real:].any()
            for place, feature in enumerate(("user", "video")):
                there = (
                    prepared[2].take(pa.array([row // 7 for row in row_ids(batch)], pa.int64()))[feature].to_pylist()
                )
                assert np.where(known[:real, place], keys[:real, place], None).tolist() == there


@pytest.mark.parametrize("lanes", [1, 4])
@pytest.mark.parametrize("world_size", [1, 2, 12])
@pytest.mark.parametrize("rows_at_once", [7, 16, 10_000])
def test_steps_that_are_read_at_once_are_those_read_alone(prepared, monkeypatch, lanes, world_size, rows_at_once):
    def batches(rank, at_once):
        monkeypatch.setattr(loader_module, "_ROWS_AT_ONCE", at_once)
        loader = make(prepared, batch_size=24, rank=rank, world_size=world_size, lanes=lanes, with_truth=True)
        return list(loader.epoch(Position(0, 48)))

    for rank in range(world_size):
        together, alone = batches(rank, rows_at_once), batches(rank, 1)
        assert [after for _, after in together] == [after for _, after in alone]
        for (found, _), (wanted, _) in zip(together, alone, strict=True):
            assert (found.ids.features, found.ids.counts) == (wanted.ids.features, wanted.ids.counts)
            assert found.ids.counts == tuple(found.ids.lengths_FB.sum(dim=1).tolist())
            assert found.global_weight == wanted.global_weight
            for one, other in zip(found.tensors(), wanted.tensors(), strict=True):
                assert one.is_contiguous() and one.dtype == other.dtype
                torch.testing.assert_close(one, other, rtol=0, atol=0, equal_nan=True)


@pytest.mark.parametrize("shuffle", ["chunks", "none"])
def test_steps_before_the_one_that_cannot_be_read_are_taken(prepared, shuffle):
    loader = make(prepared, batch_size=4, shuffle=shuffle)
    load, loaded = loader._chunks._load, set()

    def fails_at_the_ninth(chunk):
        if len(loaded | {chunk}) > 8:
            raise loader._chunks.unreadable(chunk, "gone")
        loaded.add(chunk)
        return load(chunk)

    loader._chunks._load = fails_at_the_ninth
    steps = []
    with pytest.raises(UserError, match=r"row group \d+ cannot be read \(gone\)"):
        steps.extend(loader.epoch(Position(0, 0)))
    assert [position.row for _, position in steps] == list(range(4, 65, 4))


def test_padding_rows_are_marked(prepared):
    *_, (last, _) = make(prepared).epoch(Position(0, 0))
    padding = last.weight_B == 0
    assert padding.sum() == 24 - ROWS % 24
    assert (last.row_id_B[padding] == -1).all()
    assert (last.labels_BK[padding] == 0).all()
    assert torch.equal(last.ids.lengths_FB[:, padding].sum(), torch.tensor(0))


@pytest.mark.parametrize("world_size", [1, 2])
def test_splits_in_turn_are_passed_one_after_the_other(prepared, world_size):
    folder, manifest, _ = prepared
    windows = dict(zip("abc", ([shard] for shard in manifest.splits["train"]), strict=True))
    cut = (folder, manifest.model_copy(update={"splits": windows}), None)
    in_turn = [
        SplitsInTurn([make(cut, split=split, rank=rank, world_size=world_size) for split in windows])
        for rank in range(world_size)
    ]
    assert {(rows.rows, rows.steps_per_epoch) for rows in in_turn} == {(ROWS, 2 + 2 + 2)}
    for epoch, split in enumerate(windows):
        whole = list(make(cut, split=split).epoch(Position(epoch, 0)))
        steps = list(zip(*(rows.epoch(Position(epoch, 0)) for rows in in_turn), strict=True))
        assert [[row for batch, _ in step for row in row_ids(batch)] for step in steps] == [
            row_ids(batch) for batch, _ in whole
        ]
        assert [position for (_, position), *_ in steps] == [position for _, position in whole]
        assert whole[-1][1] == Position(epoch, manifest.splits["train"][epoch].rows)
        assert [*in_turn[0].epoch(whole[-1][1])] == []
        (rest, _), *_ = in_turn[0].epoch(whole[0][1])
        assert row_ids(rest) == row_ids(steps[1][0][0])


def test_leaving_an_epoch_early_stops_the_reader(prepared):
    reading = make(prepared).epoch(Position(0, 0))
    next(reading)
    reading.close()
    assert not [thread for thread in threading.enumerate() if thread.name == "loader"]


def test_batches_are_read_ahead_on_the_gpu_of_the_rank(prepared, monkeypatch):
    current = threading.local()
    current.gpu = 3
    monkeypatch.setattr(torch.cuda, "is_initialized", lambda: True)
    monkeypatch.setattr(torch.cuda, "current_device", lambda: getattr(current, "gpu", 0))
    monkeypatch.setattr(torch.cuda, "set_device", lambda gpu: setattr(current, "gpu", gpu))
    loader = make(prepared)
    assemble, seen = loader._assemble.steps, set()

    def recorded(*args, **kwargs):
        seen.add((threading.current_thread().name, torch.cuda.current_device()))  # where memory would be pinned
        return assemble(*args, **kwargs)

    monkeypatch.setattr(loader._assemble, "steps", recorded)
    assert list(loader.epoch(Position(0, 0)))
    assert seen == {("loader", 3)}


def test_a_broken_row_group_is_named(prepared):
    folder, manifest, _ = prepared
    path = folder / manifest.splits["train"][1].path
    data = bytearray(path.read_bytes())
    data[4 : len(data) // 2] = bytes(len(data) // 2 - 4)
    path.write_bytes(data)
    with pytest.raises(UserError, match=r"train-00001.parquet: row group 0 cannot be read \("):
        list(make(prepared, shuffle="none").epoch(Position(0, 0)))
    with pytest.raises(UserError, match=r"train-00001.parquet: its checksum is not the manifest's"):
        verify_checksums(folder, manifest.splits["train"])


def test_a_manifest_of_another_schema_is_refused(prepared):
    folder, manifest, _ = prepared
    assert read_manifest(folder, SCHEMA) == manifest
    other = SCHEMA.model_copy(update={"tables": SCHEMA.tables | {"tag": SCHEMA.tables["video"]}})
    with pytest.raises(UserError, match="prepared for another schema"):
        read_manifest(folder, other)
    (folder / "manifest.json").unlink()
    with pytest.raises(UserError, match=r"no such file; run launch/preprocess.py"):
        read_manifest(folder, SCHEMA)
