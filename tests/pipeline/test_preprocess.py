"""Ray and one process prepare the same bytes; the past stays before the row; duplicates and splits are right."""

import hashlib
import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from data_pipeline.job import RayJob, SerialJob
from data_pipeline.manifest import verify_checksums
from data_pipeline.preprocess import preprocess
from data_pipeline.stages import repeats
from rankmixer_dist.config import load_config
from rankmixer_dist.errors import UserError
from tests.pipeline.killing_job import KillingJob


def prepare(small_config, folder, job, *overrides):
    """The manifest of the small log prepared into `folder`."""
    config = load_config(small_config, [f"data.prepared={folder}", *overrides])
    return preprocess(config, progress=False, job=job)


def contents(folder):
    return {
        str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }


@pytest.mark.parametrize("rows_per_task", [100, 1000, None])
def test_ray_prepares_the_bytes_that_one_process_does(small_config, tmp_path, rows_per_task):
    overrides = ("data.shard_rows=256", "data.row_group_rows=64")
    prepare(small_config, tmp_path / "serial", SerialJob(), *overrides)
    manifest = prepare(small_config, tmp_path / "ray", RayJob(rows_per_task=rows_per_task), *overrides)
    assert len(manifest.splits["train"]) > 3
    assert contents(tmp_path / "ray") == contents(tmp_path / "serial")


@pytest.mark.ray
def test_workers_that_are_killed_change_no_byte(small_config, tmp_path):
    overrides = ("data.shard_rows=256", "data.row_group_rows=64")
    prepare(small_config, tmp_path / "serial", SerialJob(), *overrides)
    (tmp_path / "killed").mkdir()
    prepare(small_config, tmp_path / "ray", KillingJob(tmp_path / "killed", rows_per_task=100), *overrides)
    killed = {path.name for path in (tmp_path / "killed").iterdir()}
    assert killed == {"read_units", "block_range", "order_rows", "write_shard"}
    assert contents(tmp_path / "ray") == contents(tmp_path / "serial")


ENDED_WHILE_IT_WRITES = """
import os, sys
from data_pipeline import preprocess as module
from data_pipeline.job import SerialJob
from rankmixer_dist.config import load_config
module.write_shard = lambda *call: os.kill(os.getpid(), int(sys.argv[1]))
module.preprocess(load_config(sys.argv[2], sys.argv[3:]), progress=False, job=SerialJob())
"""


def test_who_is_asked_to_end_leaves_nothing_and_who_is_killed_only_until_the_next_start(small_config, tmp_path):
    folder = tmp_path / "data" / "p"
    for number, left in ((signal.SIGTERM, 0), (signal.SIGKILL, 1)):
        command = [sys.executable, "-c", ENDED_WHILE_IT_WRITES, str(int(number)), small_config]
        env = os.environ | {"PYTHONPATH": str(Path(__file__).parents[2])}
        ended = subprocess.run([*command, f"data.prepared={folder}"], env=env, check=False)
        assert ended.returncode == (128 + number if number == signal.SIGTERM else -number)
        assert len(list(folder.parent.iterdir())) == left
    prepare(small_config, folder, SerialJob())
    assert list(folder.parent.iterdir()) == [folder]
    assert not [path.name for path in folder.iterdir() if path.name.startswith(".")]


def test_shards_are_what_the_manifest_says(small_config, tmp_path):
    manifest = prepare(small_config, tmp_path / "p", SerialJob(), "data.shard_rows=256", "data.row_group_rows=64")
    config = load_config(small_config)
    assert manifest.raw_rows == 3000
    train = pa.concat_tables([pq.read_table(tmp_path / "p" / shard.path) for shard in manifest.splits["train"]])
    lists = [column.name for column in train.schema if pa.types.is_list(column.type)]
    mean = {name: len(train[name].combine_chunks().flatten()) / train.num_rows for name in lists}
    assert manifest.ids_per_row == mean and len(lists) == 3
    last = -1
    ids = set()
    for split in ("train", "test"):
        shards = manifest.splits[split]
        start, end = config.data.splits[split].to_ms()
        verify_checksums(tmp_path / "p", shards)
        for place, shard in enumerate(shards):
            file = pq.ParquetFile(tmp_path / "p" / shard.path)
            rows = file.read()
            times = rows["timestamp"].to_numpy()
            assert rows.num_rows == shard.rows == (256 if place < len(shards) - 1 else shard.rows)
            assert [file.metadata.row_group(g).num_rows for g in range(shard.row_groups - 1)] == [64] * (
                shard.row_groups - 1
            )
            assert (times[0], times[-1]) == (shard.first_timestamp, shard.last_timestamp)
            assert (np.diff(times) >= 0).all()
            assert last <= times[0]
            assert start <= times[0] <= times[-1] < end
            last = times[-1]
            for task in config.features.tasks:
                assert shard.positives[task] == rows[f"label_{task}"].to_numpy().sum()
            ids |= set(rows["row_id"].to_pylist())
    assert len(ids) == 3000
    train = pa.concat_tables(pq.read_table(tmp_path / "p" / s.path) for s in manifest.splits["train"])
    for name, statistics in manifest.numerics.items():
        values = train[name].to_numpy().astype(np.float64)
        values = values[~np.isnan(values)]
        assert statistics.count == len(values)
        assert statistics.mean == pytest.approx(values.mean(), rel=1e-12)
        assert statistics.std == pytest.approx(values.std(), rel=1e-9)


def test_prepared_data_that_is_up_to_date_is_left_alone(small_config, tmp_path):
    prepare(small_config, tmp_path / "p", SerialJob())
    before = [(path, path.stat().st_mtime_ns) for path in sorted((tmp_path / "p").rglob("*"))]
    prepare(small_config, tmp_path / "p", SerialJob())
    assert [(path, path.stat().st_mtime_ns) for path in sorted((tmp_path / "p").rglob("*"))] == before
    with pytest.raises(UserError, match=str(tmp_path / "p")):
        prepare(small_config, tmp_path / "p", SerialJob(), "data.row_group_rows=32")


def test_sequences_of_the_synthetic_log_hold_only_the_past(small_config):
    config = load_config(small_config)
    rows = pa.concat_tables(pq.read_table(path) for path in sorted(config.source.path.glob("log_*.parquet")))
    rows = rows.to_pandas().sort_values("timestamp", kind="stable")
    assert rows["timestamp"].is_unique
    seen = {}
    checked = 0
    for user, video, watched in zip(rows["user_id"], rows["video_id"], rows["watched"], strict=True):
        past = seen.setdefault(user, [])
        watched = list(watched)
        # A sequence is made of videos that were shown to the user before, in that order, the newest last.
        position = 0
        for each in watched:
            position = past.index(each, position) + 1
        checked += len(watched)
        past.append(video)
    assert checked > 10_000


def test_repeats_are_rows_of_equal_time_and_content():
    random = np.random.default_rng(1)
    for _ in range(200):
        times, hashes = random.integers(0, 5, 30), random.integers(0, 3, 30)
        seen: set[tuple[int, int]] = set()
        expected = []
        for pair in zip(times.tolist(), hashes.tolist(), strict=True):
            expected.append(pair in seen)
            seen.add(pair)
        assert repeats(times, hashes).tolist() == expected


@pytest.mark.parametrize("column", ["finish", "skip", "like", "p_finish", "p_like"])
def test_an_outcome_cannot_be_a_feature(small_config, tmp_path, column):
    override = f"features.features.activity.column={column}"
    with pytest.raises(UserError, match=column):
        prepare(small_config, tmp_path / "p", SerialJob(), override)
    assert not (tmp_path / "p").exists()


def test_a_log_of_other_parameters_is_refused(small_config):
    config = load_config(small_config, ["source.users=61", "data.prepared=unused"])
    with pytest.raises(UserError, match="users"):
        preprocess(config, progress=False)
    assert not Path("unused").exists()


def test_the_log_does_not_depend_on_how_it_is_cut(small_config, tmp_path):
    tables = []
    for files in (1, 3):
        raw = tmp_path / f"raw{files}"
        overrides = [f"source.path={raw}", f"source.files_per_day={files}", f"data.prepared={tmp_path / str(files)}"]
        preprocess(load_config(small_config, overrides), progress=False)
        tables.append(pa.concat_tables(pq.read_table(path) for path in sorted(raw.glob("log_*.parquet"))))
    assert tables[0].equals(tables[1])
    assert json.loads((tmp_path / "raw1" / "world.json").read_text())
