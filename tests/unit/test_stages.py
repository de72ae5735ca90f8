"""The final order of a partition, errors that come from a worker, and what a fingerprint notices."""

import pickle

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from data_pipeline.job import RayJob, SerialJob, group_units
from data_pipeline.manifest import prepared_columns
from data_pipeline.sources import Unit
from data_pipeline.sources.parquet_log import ParquetLog, fingerprint
from data_pipeline.sources.synthetic import SyntheticLog
from data_pipeline.stages import Recipe, order_rows
from rankmixer_dist.errors import UserError
from rankmixer_dist.schema import Schema

SCHEMA = Schema.model_validate(
    {
        "tables": {"video": {"rows": 50, "dim": 8}},
        "groups": {"all": 1},
        "features": {"video_id": {"kind": "id", "table": "video", "group": "all"}},
        "tasks": {"finish": {}},
    }
)


class LogWithoutFiles(SyntheticLog):
    """Only the declarations of a source."""

    truth_columns = {}

    def __init__(self):
        pass


def test_a_partition_is_ordered_by_time_then_row_and_cut_into_splits():
    random = np.random.default_rng(3)
    rows = pa.table(
        {
            "row_id": random.permutation(1000),
            "user_id": np.zeros(1000, np.int64),
            "timestamp": random.integers(10, 40, 1000),
            "label_finish": np.zeros(1000, np.float32),
            "video_id": np.ones(1000, np.int64),
        }
    ).cast(prepared_columns(SCHEMA, has_truth=False))
    recipe = Recipe(LogWithoutFiles(), SCHEMA, {"late": (30, 40), "early": (10, 20), "middle": (20, 30)})
    ordered, dropped, report = order_rows(recipe, rows.slice(0, 400), rows.slice(400, 10), rows.slice(410))
    assert dropped.num_rows == report.duplicates == 0
    expected = sorted(zip(rows["timestamp"].to_pylist(), rows["row_id"].to_pylist(), strict=True))
    assert list(zip(ordered["timestamp"].to_pylist(), ordered["row_id"].to_pylist(), strict=True)) == expected
    for name, (start, end) in recipe.time_ranges.items():
        first, stop = report.split_rows[name]
        assert [time for time, _ in expected if start <= time < end] == ordered["timestamp"][first:stop].to_pylist()


@pytest.mark.parametrize("job", [SerialJob, pytest.param(RayJob, marks=pytest.mark.ray)])
def test_a_users_mistake_found_by_a_worker_stays_one_clear_line(job):
    def fail(name):
        raise UserError(f"{name}: mend me")

    with pytest.raises(UserError) as raised:
        list(job().map(fail, [("this",)], held=0))
    assert type(raised.value) is UserError
    assert str(raised.value) == "this: mend me"


@pytest.mark.ray
def test_ray_passes_handles_on_and_keeps_results_with_their_calls():
    def split(number, table):
        return table.slice(0, number), table.slice(number), number

    def count(left, right):
        return (left.num_rows * 100 + right.num_rows,)

    job = RayJob()
    table = job.share(pa.table({"x": range(9)}))
    done = sorted(job.map(split, [(number, table) for number in range(9)], held=2), key=lambda one: one[0])
    assert [(index, report) for index, _, report in done] == [(number, number) for number in range(9)]
    counts = {index: report for index, _, report in job.map(count, [held for _, held, _ in done], held=0)}
    assert counts == {number: number * 100 + 9 - number for number in range(9)}


def test_units_are_grouped_in_order_and_none_is_lost(tmp_path):
    units = [Unit(tmp_path, 0, group, group * 10, 10) for group in range(10)]
    groups = group_units(units, 25)
    assert [len(group) for group in groups] == [3, 3, 3, 1]
    assert [unit for group in groups for unit in group] == units
    assert group_units([], 25) == []


def test_what_a_task_is_sent_does_not_grow_with_the_files(tmp_path):
    sizes = []
    for files in (2, 200):
        for number in range(files):
            pq.write_table(pa.table({"a": [1], "b": [2]}), tmp_path / f"log_{number:03d}.parquet")
        log = ParquetLog(tmp_path, ["a"])
        assert len(log.units()) == files
        sizes.append(len(pickle.dumps(log)))
    assert sizes[0] == sizes[1]
    assert pickle.loads(pickle.dumps(log)).read(log.units()[7]).to_pylist() == [{"a": 1, "row_id": 7 << 40}]


def test_a_fingerprint_notices_a_changed_value_in_a_file_of_the_same_size(tmp_path):
    log, side = tmp_path / "log_a.parquet", tmp_path / "side.csv"
    side.write_text("a,1")
    sizes, prints = set(), []
    for label in (0, 0, 1):
        pq.write_table(pa.table({"finish": [label] * 50}), log, use_dictionary=False, compression="none")
        sizes.add(log.stat().st_size)
        prints.append(fingerprint([log], [side]))
    assert len(sizes) == 1
    assert prints[0] == prints[1] != prints[2]
    side.write_text("a,2")
    assert fingerprint([log], [side]) not in prints
    # A footer length that points before the file's start is read as what it is: damage, not a crash.
    log.write_bytes(b"\xff" * 40)
    assert fingerprint([log], [side]) not in prints
