"""The real log: counts, labels, the traps of its files, and what can never become a feature."""

import gzip
import os

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from data_pipeline.job import SerialJob
from data_pipeline.preprocess import preprocess
from data_pipeline.sources import open_source
from data_pipeline.sources.kuairand import STATISTIC_COLUMNS
from rankmixer_dist.config import load_config
from rankmixer_dist.errors import UserError

CONFIG = "configs/kuairand_pure.yaml"
OUTCOMES = (
    "is_click is_like is_follow is_comment is_forward is_hate long_view is_profile_enter play_time_ms watch_ratio "
    "profile_stay_time comment_stay_time finish like long_watch is_positive skip"
).split()


def config_of(folder, prepared, *overrides):
    return load_config(CONFIG, [f"source.path={folder}", f"data.prepared={prepared}", *overrides])


@pytest.fixture(scope="module")
def prepared(kuairand_folder, tmp_path_factory):
    """The folder's rows, prepared, with the manifest and the config."""
    folder = tmp_path_factory.mktemp("kuairand") / "prepared"
    config = config_of(kuairand_folder, folder)
    manifest = preprocess(config, progress=False, job=SerialJob())
    rows = {
        split: pa.concat_tables(pq.read_table(folder / shard.path) for shard in shards).to_pandas()
        for split, shards in manifest.splits.items()
    }
    return config, manifest, rows


@pytest.mark.thorough
def test_every_row_is_accounted_for(prepared):
    _, manifest, rows = prepared
    assert manifest.raw_rows == 94_784 + 817_187
    # Of the events, those whose video occurs once in its user's list have a label: the data's README counts them.
    assert manifest.set_aside == {"duplicate": 2750, "no_label_known": 817_187 - 763_712}
    assert sum(map(len, rows.values())) + sum(manifest.set_aside.values()) == 94_784 + 817_187
    ids = pd.concat([part["row_id"] for part in rows.values()])
    assert ids.is_unique


@pytest.mark.thorough
def test_labels_and_times_are_those_of_the_log(prepared, kuairand_folder):
    config, _, rows = prepared
    log = pq.read_table(sorted(kuairand_folder.glob("log_*.parquet"))[0]).to_pandas()
    for split, part in rows.items():
        part = part[part["row_id"] < 1 << 40]
        raw = log.loc[part["row_id"]]  # one file: a row id is the row's number in it
        start, end = config.data.splits[split].to_ms()
        assert ((raw["time_ms"] >= start) & (raw["time_ms"] < end)).all()
        assert (raw["time_ms"].to_numpy() == part["timestamp"].to_numpy()).all()
        assert (raw["user_id"].to_numpy() == part["user_id"].to_numpy()).all()
        for task in ("finish", "long_view", "is_click", "is_like"):
            assert (raw[task].to_numpy() == part[f"label_{task}"].to_numpy()).all()
        assert ((raw["play_time_ms"] < 3000).to_numpy() == (part["label_skip"] == 1).to_numpy()).all()
        assert (part["video_id"].to_numpy() == raw["video_id"].to_numpy()).all()


@pytest.mark.thorough
def test_sequences_and_past_statistics_end_before_the_row(prepared, kuairand_folder):
    _, manifest, rows = prepared
    sequences = pq.read_table(next(kuairand_folder.glob("user_sequences*.parquet"))).to_pandas().set_index("user_id")
    until = sequences["last_time_ms"].max()
    for part in (rows["train"], rows["test"]):
        known = part["user_id"].isin(sequences.index)
        last = sequences["last_time_ms"].reindex(part["user_id"]).to_numpy()
        inside = known.to_numpy() & (part["timestamp"].to_numpy() <= last)
        lengths = part["watched"].map(len).to_numpy()
        assert (lengths[inside] == 0).all()
        assert part["history_length"].isna().to_numpy()[inside].all()
        some = np.flatnonzero(known & ~inside)[::997]
        for place in some:
            wanted = sequences["watch_seq"].loc[part["user_id"].iloc[place]]
            assert part["watched"].iloc[place].tolist() == list(wanted)
        early = part["timestamp"].to_numpy() <= until
        assert part["past_watches"].isna().to_numpy()[early].all()
    assert any("history is left out" in note for note in manifest.notes)


@pytest.mark.thorough
def test_past_events_know_the_past_alone(prepared, kuairand_folder):
    _, manifest, rows = prepared
    past = rows["past"]
    past = past[past["row_id"] >= 1 << 40]
    assert len(past) == 763_712
    for task in ("finish", "skip", "is_click"):
        assert past[f"label_{task}"].isna().all()
    assert past[["label_long_view", "label_is_like"]].isin([0, 1]).all(axis=None)
    assert past[["past_watches", "past_long_rate", "past_like_rate"]].isna().all(axis=None)
    assert past[["tab", "hour"]].isna().all(axis=None)
    sequences = pq.read_table(next(kuairand_folder.glob("user_sequences*.parquet"))).to_pandas().set_index("user_id")
    assert (past["timestamp"].to_numpy() <= sequences["last_time_ms"].loc[past["user_id"]].to_numpy()).all()
    videos = pq.read_table(kuairand_folder / "item_features.parquet", columns=["video_id", "music_id"]).to_pandas()
    for _, row in past[::9973].iterrows():
        watched = list(sequences["watch_seq"].loc[row["user_id"]])
        place = len(row["watched"])
        assert row["watched"].tolist() == watched[:place]
        assert row["video_id"] == watched[place]
        long = list(sequences["long_watch_seq"].loc[row["user_id"]])
        assert (row["video_id"] in long) == (row["label_long_view"] == 1)
        assert row["long_watched"].tolist() == long[: len(row["long_watched"])]
        assert not set(row["long_watched"]) & set(watched[place + 1 :]) - set(watched[:place])
        assert pd.isna(row["music_id"]) == videos.set_index("video_id")["music_id"].isna().loc[row["video_id"]]
    assert manifest.base_rate("past", "is_like") == pytest.approx(0.0204, abs=5e-5)


def test_the_statistic_columns_are_the_leaking_ones(kuairand_folder):
    names = set(pq.read_schema(kuairand_folder / "item_features.parquet").names)
    with gzip.open(kuairand_folder / "video_features_basic_pure.csv.gz", "rt") as file:
        basic = set(file.readline().strip().split(","))
    assert set(STATISTIC_COLUMNS) <= names - basic
    assert {name for name in names - basic if name.endswith("_cnt")} <= set(STATISTIC_COLUMNS)


@pytest.mark.parametrize("column", [*OUTCOMES, *STATISTIC_COLUMNS])
def test_what_leaks_cannot_be_a_feature(kuairand_folder, tmp_path, column):
    override = f"features.features.duration.column={column}"
    with pytest.raises(UserError, match=column):
        preprocess(config_of(kuairand_folder, tmp_path / "p", override), progress=False, job=SerialJob())
    assert not os.listdir(tmp_path)


def test_no_leaking_column_is_even_read(kuairand_folder):
    names = set(open_source(load_config(CONFIG, [f"source.path={kuairand_folder}"]).source, []).names())
    assert not names & set(STATISTIC_COLUMNS)
