"""Cutting ordered rows into shards, the shards' bytes and statistics, and the rows that are set aside."""

import dataclasses
from functools import reduce
from itertools import pairwise

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st

from data_pipeline.manifest import prepared_columns
from data_pipeline.preprocess import group_touching
from data_pipeline.set_aside import SetAside
from data_pipeline.shards import Moments, ShardPlan, ShardTarget, Slice, plan_shards, write_shard
from data_pipeline.transforms import REASON
from rankmixer_dist.schema import Schema

SCHEMA = Schema.model_validate(
    {
        "tables": {"video": {"rows": 50, "dim": 8}},
        "groups": {"all": 1},
        "features": {
            "watched": {"kind": "sequence", "table": "video", "pooling": "mean", "group": "all"},
            "length": {"kind": "numeric", "group": "all"},
        },
        "tasks": {"finish": {}},
    }
)


@given(st.lists(st.tuples(st.integers(0, 30), st.integers(0, 9)), max_size=12), st.integers(1, 25))
def test_shards_hold_every_row_once_in_order(sizes, shard_rows):
    # Each partition: some rows of "a", then some of "b".
    ranges = [{"a": (0, first), "b": (first, first + second)} for first, second in sizes]
    plans = plan_shards(ranges, shard_rows)
    for split in ("a", "b"):
        of_split = [plan for plan in plans if plan.split == split]
        assert [plan.index for plan in of_split] == list(range(len(of_split)))
        counts = [sum(piece.stop - piece.start for piece in plan.slices) for plan in of_split]
        assert counts[:-1] == [shard_rows] * (len(counts) - 1)
        assert all(0 < count <= shard_rows for count in counts)
        rows = [(p.partition, row) for plan in of_split for p in plan.slices for row in range(p.start, p.stop)]
        assert rows == [(place, row) for place, part in enumerate(ranges) for row in range(*part[split])]
    assert len({plan.name for plan in plans}) == len(plans)


@given(st.lists(st.lists(st.floats(-1e6, 1e6) | st.just(float("nan")), max_size=9), max_size=9))
def test_merged_moments_are_those_of_all_values(parts):
    merged = reduce(Moments.merge, (Moments.of(np.array(part, dtype=np.float64)) for part in parts), Moments())
    values = np.array([value for part in parts for value in part if value == value])
    assert merged.count == len(values)
    if len(values):
        assert merged.mean == pytest.approx(values.mean(), rel=1e-9, abs=1e-9)
        assert merged.statistics().std == pytest.approx(values.std(), rel=1e-6, abs=1e-6)


def test_moments_survive_a_large_mean():
    # The sum of squares less the squared mean would lose the deviation here: 1e9 squared leaves no digit for it.
    values = 1e9 + np.random.default_rng(1).normal(0, 1, 100_000)
    merged = reduce(Moments.merge, map(Moments.of, np.split(values, 100)))
    assert merged.statistics().std == pytest.approx(values.std(), rel=1e-6)
    assert Moments().statistics().model_dump() == {"count": 0, "mean": 0.0, "std": 0.0}


@pytest.mark.parametrize(
    ("ranges", "groups"),
    [
        ([(0, 4), (5, 9), (10, 10)], [[0], [1], [2]]),
        ([(0, 5), (5, 5), (5, 9), (10, 12)], [[0, 1, 2], [3]]),
        ([None, (0, 4), None, (4, 9)], [[1, 3]]),
        ([(10, 12), (-5, -3), (-3, 9)], [[1, 2], [0]]),
        ([None], []),
    ],
)
def test_blocks_that_share_a_timestamp_are_ordered_together(ranges, groups):
    assert group_touching(ranges) == groups


def some_rows(count):
    random = np.random.default_rng(count)
    lengths = random.integers(0, 4, count)
    columns = {
        "row_id": np.arange(count),
        "user_id": random.integers(0, 9, count),
        "timestamp": np.sort(random.integers(0, 99, count)),
        "label_finish": random.integers(0, 2, count).astype(np.float32),
        "watched": pa.ListArray.from_arrays(
            np.concatenate([[0], lengths.cumsum()]).astype(np.int32), random.integers(1, 50, lengths.sum())
        ),
        "length": np.where(random.random(count) < 0.2, np.nan, random.random(count)).astype(np.float32),
    }
    return pa.table(columns).cast(prepared_columns(SCHEMA, has_truth=False))


@pytest.mark.parametrize(("count", "row_group_rows"), [(500, 64), (150_000, 150_000)])
def test_a_shard_does_not_depend_on_how_its_rows_were_partitioned(tmp_path, count, row_group_rows):
    rows = some_rows(count)  # the large row group is cut into pages
    results, contents = [], []
    for name, cuts in (("whole", [0, count]), ("pieces", [0, 1, 130, 131, count // 3 + 5, count])):
        (tmp_path / name).mkdir()
        target = ShardTarget(tmp_path / name, SCHEMA, row_group_rows=row_group_rows, has_truth=False)
        parts = [rows.slice(start, stop - start) for start, stop in pairwise(cuts)]
        slices = tuple(Slice(place, 7, 7 + part.num_rows) for place, part in enumerate(parts))
        partitions = [pa.concat_tables([some_rows(7), part]) for part in parts]
        (result,) = write_shard(ShardPlan("train", 3, slices), target, *partitions)
        results.append(dataclasses.astuple(result))
        contents.append((target.folder / "train-00003.parquet").read_bytes())
        file = pq.ParquetFile(target.folder / "train-00003.parquet")
        read = file.read()
        assert read.drop_columns("length").equals(rows.drop_columns("length"))
        np.testing.assert_array_equal(read["length"].to_numpy(), rows["length"].to_numpy())
        sizes = [file.metadata.row_group(group).num_rows for group in range(result.shard.row_groups)]
        assert sizes[:-1] == [row_group_rows] * (len(sizes) - 1)
        assert sum(sizes) == count
        assert result.shard.positives == {"finish": int(rows["label_finish"].to_numpy().sum())}
        assert result.shard.labelled == {"finish": count}
        assert result.ids == {"watched": len(rows["watched"].combine_chunks().flatten())}
        assert result.moments["length"].count == count - np.isnan(rows["length"].to_numpy()).sum()
    assert results[0] == results[1]
    assert contents[0] == contents[1]


def test_set_aside_rows_keep_their_order_whatever_the_pieces(tmp_path):
    rows = pa.table({"row_id": range(25_000), REASON: ["one", "two", "one", "one", "two"] * 5000})
    for name, size in (("whole", 25_000), ("pieces", 777)):
        (tmp_path / name).mkdir()
        with SetAside(tmp_path / name) as aside:
            for start in range(0, 25_000, size):
                aside.add(rows.slice(start, size))
    for reason, count in (("one", 15_000), ("two", 10_000)):
        whole, pieces = (tmp_path / name / "set_aside" / f"{reason}.parquet" for name in ("whole", "pieces"))
        assert whole.read_bytes() == pieces.read_bytes()
        kept = pq.read_table(whole)
        assert kept.num_rows == count
        assert (np.diff(kept["row_id"].to_numpy()) > 0).all()
        assert kept[REASON].unique().to_pylist() == [reason]
