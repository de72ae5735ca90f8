"""The synthetic feed: its histories, true probabilities, gaps and drift are what they are said to be."""

from collections import defaultdict, deque

import numpy as np
import pandas as pd
import pytest

from data_pipeline.sources.synthetic import write_synthetic_log
from rankmixer_dist.config import SyntheticSource
from rankmixer_dist.metrics.auc import exact_auc

TASKS = ("finish", "skip", "like")


@pytest.fixture(scope="module")
def log(tmp_path_factory):
    """40,000 rows of 300 users over three days, in the order of the files."""
    config = SyntheticSource(
        kind="synthetic", path=tmp_path_factory.mktemp("log") / "raw", rows=40_000, users=300, videos=200, days=3
    )
    assert write_synthetic_log(config)
    assert not write_synthetic_log(config)
    return pd.concat([pd.read_parquet(path) for path in sorted(config.path.glob("log_*.parquet"))], ignore_index=True)


def test_files_are_in_the_order_of_time(log):
    assert len(log) == 40_000
    assert (np.diff(log["timestamp"]) > 0).all()
    days = (log["timestamp"] - 1_767_225_600_000) // 86_400_000
    assert sorted(days.unique()) == [0, 1, 2]
    assert (log["hour"] == log["timestamp"] // 3_600_000 % 24).all()


def test_a_history_is_what_the_user_watched_before_the_row(log):
    watched = defaultdict(lambda: deque(maxlen=20))
    for user, video, skip, history in zip(log["user_id"], log["video_id"], log["skip"], log["watched"], strict=True):
        assert list(history) == list(watched[user])
        if not skip:
            watched[user].append(video)
    assert log["watched"].map(len).value_counts()[20] > 20_000


@pytest.mark.parametrize("task", TASKS)
def test_the_probabilities_are_the_ones_that_were_drawn_from(log, task):
    label, truth = log[task].to_numpy(), log[f"p_{task}"].to_numpy().astype(np.float64)
    assert set(np.unique(label)) == {0, 1}
    for part in np.array_split(np.argsort(truth), 10):
        deviation = np.sqrt((truth[part] * (1 - truth[part])).sum())
        assert abs(label[part].sum() - truth[part].sum()) < 4 * deviation
    assert 0.72 < exact_auc(truth, label == 1).auc < 0.9
    low, high = {"finish": (0.25, 0.4), "skip": (0.25, 0.45), "like": (0.03, 0.08)}[task]
    assert low < label.mean() < high


def test_no_video_is_both_skipped_and_finished_or_liked(log):
    assert not (log["skip"] & (log["finish"] | log["like"])).any()
    assert (log["finish"] & log["like"]).any()


def test_some_values_are_missing_and_others_never(log):
    missing = log.isna().mean()
    for column in ("age_segment", "activity", "author_id", "tags", "duration_s"):
        assert 0.01 < missing[column] < 0.07, column
    rest = log.columns.difference(["age_segment", "activity", "author_id", "tags", "duration_s"])
    assert not missing[rest].any()


def test_interactions_across_groups_carry_the_signal(log):
    """What the log is for: taste x topic, history x topic and hour x duration all move the outcome."""
    log = log.dropna(subset=["tags", "duration_s"])
    topic = log["tags"].map(lambda tags: tags[0].split("/")[0])
    liked = np.array([one in tags for one, tags in zip(topic, log["liked_tags"], strict=True)])
    assert log["finish"][liked].mean() > log["finish"][~liked].mean() + 0.15
    topic_of = dict(zip(log["video_id"], topic, strict=True))
    shared = [
        sum(topic_of.get(video) == one for video in watched) for one, watched in zip(topic, log["watched"], strict=True)
    ]
    unliked_many, unliked_few = ~liked & (np.array(shared) > 6), ~liked & (np.array(shared) < 2)
    assert log["finish"][unliked_many].mean() > log["finish"][unliked_few].mean() + 0.05
    long, evening = log["duration_s"] > 60, log["hour"].between(19, 22)
    morning = log["hour"].between(7, 11)
    gain_long = log["finish"][long & evening].mean() - log["finish"][long & morning].mean()
    short = log["duration_s"] < 15
    gain_short = log["finish"][short & evening].mean() - log["finish"][short & morning].mean()
    assert gain_long > 0.08
    assert gain_short < -0.08


def test_another_seed_is_another_log(tmp_path):
    config = {"kind": "synthetic", "rows": 500, "users": 30, "videos": 20, "days": 1}
    for seed in (1, 2):
        write_synthetic_log(SyntheticSource(path=tmp_path / str(seed), seed=seed, **config))
    first, second = (pd.read_parquet(tmp_path / seed / "log_2026-01-01_0000.parquet") for seed in "12")
    assert not first["p_finish"].equals(second["p_finish"])
