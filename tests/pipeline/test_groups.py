"""Preparation with groups: the same rows as without, the same bytes from Ray, and every reader expands them."""

from itertools import pairwise

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch

from data_pipeline.assemble import BatchAssembler
from data_pipeline.checks import check_columns
from data_pipeline.groups import side_metadata
from data_pipeline.job import RayJob, SerialJob
from data_pipeline.loader import Loader
from data_pipeline.preprocess import preprocess
from data_pipeline.reading import find_prepared
from data_pipeline.shards import read_rows
from data_pipeline.sources import open_source
from data_pipeline.streaming.shards import scan
from data_pipeline.streaming.windows import WindowPlan
from rankmixer_dist.batch import Position
from rankmixer_dist.config import load_config
from rankmixer_dist.errors import RankError, UserError
from rankmixer_dist.verbs.plan import measured_ids
from tests.pipeline.test_preprocess import contents

USER_SIDE = ("user", "watched", "liked_tags")
SCOPES = tuple(f"features.features.{name}.scope=user" for name in USER_SIDE)
NO_SCOPES = tuple(f"features.features.{name}.scope=row" for name in USER_SIDE)
DAY = ("data.group.by=user_id", "data.group.window=1d")
SMALL = ("data.shard_rows=256", "data.row_group_rows=64")


def prepare(small_config, folder, *overrides, job=None):
    config = load_config(small_config, [f"data.prepared={folder}", *SMALL, *SCOPES, *overrides])
    return config, preprocess(config, progress=False, job=job or SerialJob())


def rows_of(config, manifest, split):
    return pa.concat_tables(read_rows(config.data.prepared / shard.path) for shard in manifest.splits[split])


def test_a_scope_alone_changes_no_byte(small_config, tmp_path):
    prepare(small_config, tmp_path / "scoped")
    config = load_config(small_config, [f"data.prepared={tmp_path / 'plain'}", *SMALL, *NO_SCOPES])
    preprocess(config, progress=False, job=SerialJob())
    assert contents(tmp_path / "scoped") == contents(tmp_path / "plain")
    assert find_prepared(config, ["train"]).group is None


@pytest.mark.parametrize("group", [DAY, ("data.group.window=none",), ("data.group.by=hour", "data.group.window=30m")])
def test_grouped_rows_are_the_rows_without_groups(small_config, tmp_path, group):
    plain_config, plain = prepare(small_config, tmp_path / "plain")
    config, manifest = prepare(small_config, tmp_path / "grouped", *group)
    assert manifest.format_version == 6
    for split in manifest.splits:
        rows, wanted = rows_of(config, manifest, split), rows_of(plain_config, plain, split)
        assert rows.schema.equals(wanted.schema)
        for name in wanted.column_names:
            np.testing.assert_equal(
                rows.sort_by("row_id")[name].to_pylist(), wanted.sort_by("row_id")[name].to_pylist(), err_msg=name
            )
        times = rows["timestamp"].to_numpy()
        assert manifest.span(split) == (times.min(), times.max()) == plain.span(split)
    for name, statistics in plain.numerics.items():
        assert manifest.numerics[name].count == statistics.count
        assert manifest.numerics[name].mean == pytest.approx(statistics.mean, rel=1e-12)
    shares = 1 / manifest.rows_per_group("train")
    assert manifest.ids_per_row["user"] == pytest.approx(shares) and "user" not in plain.ids_per_row
    for name, ids in plain.ids_per_row.items():
        assert manifest.ids_per_row[name] == pytest.approx(ids) if name == "tags" else manifest.ids_per_row[name] < ids
    assert manifest.key_ranges == plain.key_ranges


def test_a_users_day_stands_together_in_order_of_days_and_of_time_within(small_config, tmp_path):
    config, manifest = prepare(small_config, tmp_path / "grouped", *DAY)
    rows = rows_of(config, manifest, "train")
    start, _ = config.data.splits["train"].to_ms()
    days = (rows["timestamp"].to_numpy() - start) // 86_400_000
    assert (np.diff(days) >= 0).all()
    changes = np.flatnonzero(np.diff(rows["user_id"].to_numpy()) | np.diff(days))
    pairs = set(zip(days.tolist(), rows["user_id"].to_pylist(), strict=True))
    assert len(changes) + 1 == len(pairs)
    within = np.setdiff1d(np.arange(rows.num_rows - 1), changes)
    assert (np.diff(rows["timestamp"].to_numpy())[within] >= 0).all()
    # A row group begins a group, too, and so does a history that lost more events than it can show.
    assert len(pairs) <= manifest.group.groups["train"] <= len(pairs) + rows.num_rows // 64 + 1
    assert not any("watched" in note for note in manifest.notes)


@pytest.mark.ray
@pytest.mark.parametrize("rows_per_task", [100, None])
def test_ray_prepares_the_bytes_that_one_process_does(small_config, tmp_path, rows_per_task):
    prepare(small_config, tmp_path / "serial", *DAY)
    prepare(small_config, tmp_path / "ray", *DAY, job=RayJob(rows_per_task=rows_per_task))
    assert contents(tmp_path / "ray") == contents(tmp_path / "serial")


@pytest.mark.parametrize("world_size", [1, 2, 3])
def test_the_loader_gives_every_row_once_whatever_the_ranks(small_config, tmp_path, world_size):
    config, manifest = prepare(small_config, tmp_path / "grouped", *DAY)
    shares = range(world_size)
    batches = [batches_of(config, manifest, shares=True, world_size=world_size, rank=r, split="test") for r in shares]
    found = [row for share in batches for batch in share for row in batch.row_id_B[batch.weight_B > 0].tolist()]
    rows = rows_of(config, manifest, "test")
    assert sorted(found) == sorted(rows["row_id"].to_pylist())
    seen = sum(batch.ids.groups.seen[0] for share in batches for batch in share)
    assert seen == len(rows["watched"].combine_chunks().flatten())


def test_a_streaming_evaluation_reads_them_too(small_config, tmp_path):
    config, manifest = prepare(small_config, tmp_path / "grouped", *DAY)
    (shard, *_) = manifest.splits["test"]
    plan = WindowPlan(config.data.splits["test"].to_ms()[0], 3_600_000)
    columns = BatchAssembler(config.features, rows=1, with_truth=False, pin_memory=False).columns()
    facts = scan(config.data.prepared / shard.path, config.features, columns, plan)
    assert facts.problem is None
    assert sum(facts.rows.values()) == shard.rows


@pytest.mark.parametrize(
    ("side", "told"),
    [
        ('{"user": nul', "is not whole"),
        ('["user"]', "is not whole"),
        ('{"user": 0}', "is not whole"),
        ('{"user": true}', "is not whole"),
        ('{"user": 1.5}', "is not whole"),
        ('{"user": null, "seen": 3}', "has no column 'visible_seen' of type int32"),
        ('{"user": 3}', "has no column 'visible_user' of type int32"),
        ('{"user": null, "tags": 4}', "has no column 'visible_tags' of type int32"),
    ],
)
def test_a_shard_that_says_nonsense_of_its_groups_is_set_aside(small_config, tmp_path, side, told):
    config, manifest = prepare(small_config, tmp_path / "grouped", *DAY)
    path = config.data.prepared / manifest.splits["test"][0].path
    plan = WindowPlan(config.data.splits["test"].to_ms()[0], 3_600_000)
    columns = BatchAssembler(config.features, rows=1, with_truth=False, pin_memory=False).columns()
    rows = pq.read_table(path)
    pq.write_table(rows.replace_schema_metadata(rows.schema.metadata | side_written(side)), path)
    problem = scan(path, config.features, columns, plan).problem
    assert problem.startswith(f"{path}: ") and told in problem and "\n" not in problem
    with pytest.raises(RankError, match="is not whole|shares? other columns than the manifest says"):
        batches_of(config, manifest, shares=True, split="test")


def side_written(text):
    (key,) = side_metadata({"user": None})
    return {key: text.encode()}


@pytest.mark.parametrize("name", ["group_start", "visible_watched"])
def test_a_shard_without_a_column_of_its_groups_is_set_aside(small_config, tmp_path, name):
    config, manifest = prepare(small_config, tmp_path / "grouped", *DAY)
    path = config.data.prepared / manifest.splits["test"][0].path
    plan = WindowPlan(config.data.splits["test"].to_ms()[0], 3_600_000)
    columns = BatchAssembler(config.features, rows=1, with_truth=False, pin_memory=False).columns()
    rows = pq.read_table(path)
    place = rows.schema.get_field_index(name)
    for other in (rows.drop_columns([name]), rows.set_column(place, name, pa.array(["x"] * len(rows)))):
        pq.write_table(other, path)
        assert f"has no column {name!r} of type " in scan(path, config.features, columns, plan).problem


def test_a_column_that_is_no_list_holds_no_events(small_config, tmp_path):
    config, manifest = prepare(small_config, tmp_path / "grouped", *DAY)
    path = config.data.prepared / manifest.splits["test"][0].path
    plan = WindowPlan(config.data.splits["test"].to_ms()[0], 3_600_000)
    columns = BatchAssembler(config.features, rows=1, with_truth=False, pin_memory=False).columns()
    rows = pq.read_table(path).append_column(
        "visible_user", pa.array([1] * manifest.splits["test"][0].rows, pa.int32())
    )
    pq.write_table(rows.replace_schema_metadata(rows.schema.metadata | side_written('{"user": 3}')), path)
    assert "column 'user' holds no events" in scan(path, config.features, columns, plan).problem


def test_data_that_stands_is_left_alone(small_config, tmp_path):
    _, manifest = prepare(small_config, tmp_path / "p", *DAY)
    before = {path: path.stat().st_mtime_ns for path in (tmp_path / "p").iterdir()}
    assert prepare(small_config, tmp_path / "p", *DAY)[1] == manifest
    assert {path: path.stat().st_mtime_ns for path in (tmp_path / "p").iterdir()} == before


def test_what_rows_read_is_counted_beside_what_groups_hold(small_config, tmp_path):
    _, plain = prepare(small_config, tmp_path / "plain")
    _, manifest = prepare(small_config, tmp_path / "grouped", *DAY)
    assert manifest.ids_of_rows(shared=True) == manifest.ids_per_row
    assert manifest.ids_of_rows(shared=False) == pytest.approx(plain.ids_per_row | {"user": 1.0})
    assert plain.ids_of_rows(shared=True) == plain.ids_of_rows(shared=False) == plain.ids_per_row
    older = manifest.model_copy(update={"ids_read_per_row": {}})
    assert older.ids_of_rows(shared=False) == manifest.ids_per_row


def test_a_plan_counts_the_events_that_rows_read(small_config, tmp_path):
    config, manifest = prepare(small_config, tmp_path / "grouped", *DAY)
    assert measured_ids(config) == (manifest.ids_per_row, "measured")
    alone = config.model_copy(update={"loader": config.loader.model_copy(update={"share": False})})
    assert measured_ids(alone) == (manifest.ids_of_rows(shared=False), "measured")
    assert measured_ids(config, shared=False) == measured_ids(alone)


@pytest.mark.parametrize("name", ["group_key", "group_window"])
def test_a_feature_may_have_any_name_that_rows_do_not_take(small_config, tmp_path, name):
    feature = "{kind: id, column: video_id, table: video, group: video}"
    config, manifest = prepare(small_config, tmp_path / "p", *DAY, f"features.features.{name}={feature}")
    for split in manifest.splits:
        rows = rows_of(config, manifest, split)
        assert rows[name].equals(rows["video_id"])


@pytest.mark.parametrize("name", ["group_start", "visible_watched", "visible_user"])
def test_names_that_groups_take_are_refused_where_there_are_groups(small_config, tmp_path, name):
    feature = "{kind: id, column: video_id, table: video, group: video}"
    sequence = "{columns: {video_id: {kind: id, column: watched, table: video}}}"
    for declared in (f"features.features.{name}={feature}", f"features.sequences.{name}={sequence}"):
        config = load_config(small_config, [f"data.prepared={tmp_path / 'p'}", *SMALL, *SCOPES, *DAY, declared])
        if name == "visible_user":  # `user` holds no events
            open_columns(config)
            continue
        with pytest.raises(
            UserError, match=f"(feature|sequence) {name}: grouped rows have a column of this name; choose another"
        ):
            open_columns(config)
    prepare(small_config, tmp_path / "plain", f"features.features.{name}={feature}")


def open_columns(config):
    schema = config.features
    raw = [*schema.raw_columns().values(), *schema.event_columns(), *schema.label_columns().values()]
    check_columns(schema, open_source(config.source, raw), config.data.group)


def test_other_groups_are_other_data(small_config, tmp_path):
    prepare(small_config, tmp_path / "p", *DAY)
    for overrides in ((), ("data.group.window=2d",), (*DAY, "features.features.age_segment.scope=user")):
        with pytest.raises(UserError, match="was prepared from other input: group was"):
            prepare(small_config, tmp_path / "p", *overrides)


@pytest.mark.parametrize(
    ("overrides", "told"),
    [
        (("data.group.by=user_ix",), "has no column 'user_ix'"),
        (("data.group.by=finish",), "is the label of a task"),
        (("data.group.by=watched",), "ids are needed"),
    ],
)
def test_what_rows_cannot_be_grouped_by(small_config, tmp_path, overrides, told):
    with pytest.raises(UserError, match=told):
        prepare(small_config, tmp_path / "p", *overrides)


def test_rows_that_share_nothing_are_not_grouped(small_config, tmp_path):
    config = load_config(small_config, [f"data.prepared={tmp_path / 'p'}", *DAY, *NO_SCOPES])
    with pytest.raises(UserError, match="no feature has `scope: user`"):
        preprocess(config, progress=False, job=SerialJob())


def batches_of(config, manifest, *, shares, world_size=1, rank=0, batch_size=30, lanes=1, split="train", row=0):
    loader = Loader(
        config.data.prepared, manifest, config.features, split=split, batch_size=batch_size, rank=rank,
        world_size=world_size, shuffle="chunks", seed=3, lanes=lanes, prefetch=2, with_truth=True,
        keys_of=("user", "video_id"), shares=shares,
    )  # fmt: skip
    return [batch for batch, _ in loader.epoch(Position(0, row))]


def each_row_alone(batch):
    """The ids of a batch by feature and row: each row's own."""
    ids, groups = batch.ids, batch.ids.groups
    ends = [0, *np.cumsum(ids.lengths_FB.numpy()).tolist()]
    rows = len(batch.row_id_B)
    lists = [ids.values[start:end].tolist() for start, end in pairwise(ends)]
    found = {name: lists[place * rows : (place + 1) * rows] for place, name in enumerate(ids.features)}
    assert ids.counts == tuple(sum(len(each) for each in lists) for lists in found.values())
    if groups is None:
        return found
    assert {*groups.features} == {*USER_SIDE} and groups.sequences == ("watched",)
    first_B = groups.first_G[groups.group_B].tolist()
    assert groups.group_B[0] == 0 and set(groups.group_B.diff().tolist()) <= {0, 1}
    for name in USER_SIDE:
        riding = found[name]
        assert all(not riding[row] for row in range(rows) if first_B[row] != row)
        found[name] = [riding[first] for first in first_B]
    for place, name in enumerate(groups.sequences):
        seen = [
            events[:visible][-groups.newest[place] :] if visible else []
            for events, visible in zip(found[name], groups.visible_SB[place].tolist(), strict=True)
        ]
        assert sum(len(events) for events in seen) == groups.seen[place]
        found[name] = seen
    return found


@pytest.mark.parametrize(("world_size", "batch_size", "lanes"), [(1, 30, 1), (2, 64, 1), (3, 33, 4), (1, 1, 1)])
def test_rows_that_share_are_the_rows_that_do_not(small_config, tmp_path, world_size, batch_size, lanes):
    config, manifest = prepare(small_config, tmp_path / "grouped", *DAY)
    sent = {True: 0, False: 0}
    for rank in range(world_size):
        ways = {
            shares: batches_of(
                config, manifest, shares=shares, world_size=world_size, rank=rank, batch_size=batch_size, lanes=lanes
            )
            for shares in sent
        }
        for shared, alone in zip(*(ways[shares] for shares in (True, False)), strict=True):
            assert shared.global_weight == alone.global_weight
            for name in ("row_id_B", "user_id_B", "timestamp_B", "weight_B", "labels_BK", "numerics_BN", "truth_BK"):
                assert torch.equal(getattr(shared, name).nan_to_num(7), getattr(alone, name).nan_to_num(7)), name
            assert torch.equal(shared.keys_BS * shared.known_BS, alone.keys_BS * alone.known_BS)
            assert torch.equal(shared.known_BS, alone.known_BS)
            assert each_row_alone(shared) == each_row_alone(alone)
            sent[True] += sum(shared.ids.counts)
            sent[False] += sum(alone.ids.counts)
    assert sent[True] <= (0.75 if batch_size > 1 else 1) * sent[False]


@pytest.mark.parametrize("shares", [True, False])
def test_a_run_goes_on_within_a_group(small_config, tmp_path, shares):
    config, manifest = prepare(small_config, tmp_path / "grouped", *DAY)
    whole = batches_of(config, manifest, shares=False, batch_size=1)
    for row in (0, 1, 7, 63, 64, 1001):
        (rest, *_) = batches_of(config, manifest, shares=shares, batch_size=24, row=row)
        assert rest.row_id_B.tolist() == [batch.row_id_B.item() for batch in whole[row : row + 24]]
        alone = [each_row_alone(batch) for batch in whole[row : row + 24]]
        assert each_row_alone(rest) == {name: [each[name][0] for each in alone] for name in rest.ids.features}


@pytest.mark.parametrize("side", [{"user": None}, {"user": None, "watched": 3, "liked_tags": None}])
@pytest.mark.parametrize("shares", [True, False])
def test_a_manifest_that_says_other_columns_than_its_shards_is_refused(small_config, tmp_path, side, shares):
    config, manifest = prepare(small_config, tmp_path / "grouped", *DAY)
    other = manifest.model_copy(update={"group": manifest.group.model_copy(update={"user_side": side})})
    for told in (other, manifest.model_copy(update={"group": None})):
        with pytest.raises(RankError, match="shares? other columns than the manifest says"):
            batches_of(config, told, shares=shares)
