"""A small log in KuaiRand's form: which of equal rows stays, on one process and on Ray, and what rows may know."""

import shutil

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from data_pipeline.job import RayJob, SerialJob
from data_pipeline.preprocess import preprocess
from rankmixer_dist.config import load_config
from rankmixer_dist.errors import UserError

START_MS = 1_650_816_000_000  # 25 April 2022, 00:00 in China
ROWS = 900


def exposures():
    """Rows of few distinct values at few distinct times, so that many share a time and some are equal in all."""
    random = np.random.default_rng(7)
    log = pd.DataFrame(
        {
            "user_id": random.integers(0, 2, ROWS),
            "video_id": random.integers(0, 2, ROWS),
            "date": 20220425,
            "hourmin": np.int32(0),
            "time_ms": START_MS + random.integers(0, 60, ROWS) * 7_200_000,
        }
    )
    for name in "is_click is_like is_follow is_comment is_forward is_hate long_view is_profile_enter".split():
        log[name] = 0
    log["is_click"] = random.integers(0, 2, ROWS)
    log["play_time_ms"] = random.choice([0, 2999, 3000], ROWS)
    for name in "duration_ms profile_stay_time comment_stay_time is_rand tab".split():
        log[name] = 0
    log["source_file"] = "log.csv"
    log["watch_ratio"] = np.float32(0.5)
    for name in "finish like long_watch is_positive".split():
        log[name] = np.int8(0)
    log["author_id"] = log["video_id"] + 100
    log["tag"] = np.where(log["video_id"] == 0, "unknown", "3,12")
    log["upload_dt"], log["upload_date"] = "2022-04-10", 20220410
    log["video_duration"] = np.where(log["video_id"] == 0, np.nan, 9000.0)
    log["freshness_days"] = 15
    return log


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """The exposures in three files of many row groups, and the side files of their users and videos."""
    path = tmp_path_factory.mktemp("kuairand")
    log = exposures()
    for number, (start, stop) in enumerate(((0, 200), (200, 500), (500, ROWS))):
        log[start:stop].to_parquet(path / f"log_{number}.parquet", index=False, row_group_size=50)
    sequences = {
        "user_id": [0],
        "history_len": [3],
        "last_time_ms": [START_MS + 10 * 7_200_000],
        "watch_seq": [[0, 1, 1]],
        "like_seq": [[1]],
        "long_watch_seq": [[1]],
    }
    pd.DataFrame(sequences).to_parquet(path / "user_sequences_until_0424.parquet", index=False)
    users = pd.DataFrame({"user_id": [0, 1], "user_active_degree": ["full_active", "UNKNOWN"], "follow_user_num": 5})
    users.to_csv(path / "user_features_pure.csv.gz", index=False)
    videos = pd.DataFrame({"video_id": [0, 1], "author_id": [100, 101], "music_id": [8, 9], "video_duration": 9000.0})
    videos.to_csv(path / "video_features_basic_pure.csv.gz", index=False)
    return path


def prepared(folder, where, job):
    """The prepared rows of both splits, and the manifest."""
    overrides = [f"source.path={folder}", f"data.prepared={where}", "data.shard_rows=96", "data.row_group_rows=32"]
    config = load_config("configs/kuairand_pure.yaml", [*overrides, "source.past_events=false"])
    splits = {name: split for name, split in config.data.splits.items() if name != "past"}
    config = config.model_copy(update={"data": config.data.model_copy(update={"splits": splits})})
    manifest = preprocess(config, progress=False, job=job)
    shards = [shard for split in ("train", "test") for shard in manifest.splits[split]]
    return pd.concat([pd.read_parquet(where / shard.path) for shard in shards]), manifest


def contents(folder):
    return {path.relative_to(folder): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


@pytest.fixture(scope="module")
def serial(folder, tmp_path_factory):
    where = tmp_path_factory.mktemp("serial") / "prepared"
    return *prepared(folder, where, SerialJob()), where


def test_of_equal_rows_the_first_stays(serial):
    rows, manifest, where = serial
    log = exposures()
    starts = {0: 0, 1: 200, 2: 500}
    number = np.array([starts[row >> 40] + (row & ((1 << 40) - 1)) for row in rows["row_id"]])
    kept = log[~log.duplicated()]
    assert manifest.set_aside["duplicate"] == log.duplicated().sum() > 100
    assert sorted(number) == kept.index.tolist()
    order = kept.assign(number=kept.index).sort_values(["time_ms", "number"])
    assert number.tolist() == order["number"].tolist()
    dropped = pd.read_parquet(where / "set_aside" / "duplicate.parquet")
    assert len(dropped) == log.duplicated().sum()
    assert (rows["label_skip"].to_numpy() == (order["play_time_ms"] < 3000).to_numpy()).all()


@pytest.mark.ray
@pytest.mark.parametrize("rows_per_task", [50, 300])
def test_ray_drops_the_same_ones(folder, serial, tmp_path, rows_per_task):
    prepared(folder, tmp_path / "ray", RayJob(rows_per_task=rows_per_task))
    assert contents(tmp_path / "ray") == contents(serial[2])


def test_a_row_inside_its_users_sequence_has_no_history(serial):
    rows, manifest, _ = serial
    late = rows["timestamp"] > START_MS + 10 * 7_200_000
    watched = rows["watched"].map(list)
    assert all(ids == [0, 1, 1] for ids in watched[(rows["user_id"] == 0) & late])
    assert not any(watched[(rows["user_id"] == 1) | ~late])
    assert rows["history_length"].isna().equals((rows["user_id"] == 0) & ~late)
    inside = exposures().query("user_id == 0 and time_ms <= @START_MS + 10 * 7_200_000")
    assert f"{len(inside)} rows not later than their user's sequence: their history is left out" in manifest.notes


def test_unknown_words_are_missing_and_the_hour_is_chinas(serial):
    rows, _, _ = serial
    assert rows["user_active_degree"].isna().equals(rows["user_id"] == 1)
    assert (rows["tags"].map(len) == 0).equals(rows["video_id"] == 0)
    assert rows["duration_bucket"].isna().equals(rows["video_id"] == 0)
    hours = (rows["timestamp"] - START_MS) // 3_600_000 % 24
    assert (rows["hour"] == hours).all()


def test_equal_rows_of_files_of_other_types_are_equal(folder, serial, tmp_path):
    other = tmp_path / "raw"
    shutil.copytree(folder, other)
    log = pq.read_table(other / "log_1.parquet").replace_schema_metadata(None)
    kinds = {"user_id": pa.string(), "video_id": pa.float64(), "is_click": pa.bool_(), "play_time_ms": pa.float64()}
    kinds |= {"tag": pa.large_string(), "tab": pa.int8(), "video_duration": pa.float32(), "date": pa.string_view()}
    for name, kind in kinds.items():
        text = kind == pa.string_view()
        column = log[name].cast(pa.string()).cast(kind) if text else log[name].cast(kind)
        log = log.set_column(log.column_names.index(name), name, column)
    moments = log["time_ms"].cast(pa.timestamp("ms", "UTC")).cast(pa.timestamp("us", "UTC"))
    log = log.set_column(log.column_names.index("time_ms"), "time_ms", moments)
    pq.write_table(log.select(log.column_names[::-1]), other / "log_1.parquet", row_group_size=50)
    sequences = pq.read_table(other / "user_sequences_until_0424.parquet")
    sequences = sequences.set_column(0, "user_id", sequences["user_id"].cast(pa.string()))
    pq.write_table(sequences, other / "user_sequences_until_0424.parquet")
    rows, manifest = prepared(other, tmp_path / "prepared", SerialJob())
    assert manifest.raw_types["user_id"] == ["int64", "string"]
    assert manifest.set_aside == serial[1].set_aside
    pd.testing.assert_frame_equal(rows, serial[0])


@pytest.mark.parametrize(
    "lists",
    [pa.array([["1"]]), pa.array([[1]], pa.list_(pa.int64(), 1)), pa.array([[1]], pa.list_view(pa.int64()))],
    ids=["strings", "fixed", "view"],
)
def test_sequences_that_are_no_lists_of_integers_are_named(folder, tmp_path, lists):
    other = tmp_path / "raw"
    shutil.copytree(folder, other)
    path = other / "user_sequences_until_0424.parquet"
    sequences = pq.read_table(path)
    place = sequences.column_names.index("like_seq")
    pq.write_table(sequences.set_column(place, "like_seq", lists), path)
    with pytest.raises(UserError, match=r"0424\.parquet: column 'like_seq' is .*list.*; plain lists of integers are"):
        prepared(other, tmp_path / "prepared", SerialJob())


def test_a_log_column_that_cannot_be_compared_is_named(folder, tmp_path):
    other = tmp_path / "raw"
    shutil.copytree(folder, other)
    log = pq.read_table(other / "log_1.parquet")
    pq.write_table(log.append_column("path", pa.array([[1]] * len(log))), other / "log_1.parquet")
    with pytest.raises(UserError, match=r"log_1\.parquet: column 'path' is list<.*to find duplicates by are needed"):
        prepared(other, tmp_path / "prepared", SerialJob())
