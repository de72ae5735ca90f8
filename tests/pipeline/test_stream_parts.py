"""The parts of a streaming evaluation: windows, shards, checkpoints that stay, and what is kept on disk."""

import errno
import json
import shutil
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from data_pipeline.assemble import BatchAssembler
from data_pipeline.streaming import worker
from data_pipeline.streaming.checkpoints import Choice, Pins, is_settled, newest_before
from data_pipeline.streaming.lines import LineFile
from data_pipeline.streaming.scoring import Figures, Item
from data_pipeline.streaming.shards import Facts, Stamp, arrived, rows_of, scan
from data_pipeline.streaming.state import State
from data_pipeline.streaming.windows import WindowPlan
from rankmixer_dist.config import load_config
from rankmixer_dist.errors import UserError
from rankmixer_dist.schema import TIMESTAMP

HOUR_MS = 3_600_000
PLAN = WindowPlan(1_767_225_600_000, 6 * HOUR_MS)


def test_every_time_is_in_one_window():
    random = np.random.default_rng(1)
    times = PLAN.start_ms + random.integers(-3 * HOUR_MS, 40 * HOUR_MS, 1000)
    times[:2] = PLAN.start_ms, PLAN.start_ms + PLAN.length_ms
    counts, early = PLAN.count(times)
    assert early == (times < PLAN.start_ms).sum() > 0
    for window, count in counts.items():
        assert window.end - window.start == PLAN.length_ms
        assert (window.start - PLAN.start_ms) % PLAN.length_ms == 0
        assert count == ((times >= window.start) & (times < window.end)).sum()
        assert {PLAN.at(int(time)) for time in times if window.start <= time < window.end} == {window}
        assert PLAN.named(window.name) == window
    assert sum(counts.values()) + early == 1000


@pytest.mark.parametrize(
    ("override", "told"),
    [
        ("stream.window_hours=0.0001", "window_hours 0.0001 is not a whole number of seconds"),
        ("stream.start='2026-01-01T00:00:00.5Z'", "is not a whole second"),
    ],
)
def test_windows_begin_at_whole_seconds(days_config, override, told):
    with pytest.raises(UserError, match=told):
        load_config(days_config, [override])


def test_a_line_that_was_cut_off_is_removed_and_any_other_damage_refused(tmp_path):
    path = tmp_path / "lines.jsonl"
    file = LineFile(path)
    for number in range(3):
        file.append({"number": number})
    file.close()
    whole = path.read_bytes()
    for cut in range(len(whole)):
        path.write_bytes(whole[:cut])
        file = LineFile(path)
        assert [line["number"] for line in file.lines] == list(range(whole[:cut].count(b"\n")))
        file.append({"number": "new"})
        file.close()
        assert json.loads(path.read_text().splitlines()[-1]) == {"number": "new"}
    path.write_bytes(whole.replace(b"1", b"\x00"))
    with pytest.raises(UserError, match=r"lines.jsonl: line 2 is not JSON"):
        LineFile(path)


@pytest.fixture
def shard(days_config, tmp_path):
    """A good shard of 128 rows in four row groups, to break, and what `scan` is asked."""
    config = load_config(days_config)
    path = tmp_path / "day3-00000.parquet"
    shutil.copy(config.data.prepared / path.name, path)
    columns = BatchAssembler(config.features, rows=64, with_truth=False, pin_memory=False).columns()
    return path, (config.features, columns, WindowPlan.of(config))


def changed(path, name, values):
    """The shard's rows with another column, as a new file."""
    table = pq.read_table(path)
    place = table.schema.names.index(name)
    field = table.schema.field(name) if values.type == table.schema.field(name).type else pa.field(name, values.type)
    pq.write_table(table.set_column(place, field.with_nullable(True), values), path, row_group_size=32)


def test_a_shard_is_known_by_what_it_holds(shard):
    path, asked = shard
    facts = scan(path, *asked)
    times = pq.read_table(path)[TIMESTAMP].to_numpy()
    assert facts.problem is None and facts.newest == times.max() and facts.early_rows == 0
    assert [(window.name, rows) for window, rows in facts.rows.items()] == [("20260103T000000Z", 128)]
    assert arrived(path.parent, None) == {path.name: facts.stamp}
    assert arrived(path.parent, ["other.parquet"]) == {}


def test_rows_of_a_window_are_found_whatever_their_order(shard):
    path, (schema, columns, _) = shard
    rows = pq.read_table(path)
    mixed = rows.take(pa.array(np.random.default_rng(1).permutation(128)))
    for table in (rows, mixed):
        pq.write_table(table.cast(rows.schema), path, row_group_size=32)
        found = []
        for number in range(24 * 4):
            window = WindowPlan(1_767_398_400_000, HOUR_MS // 4).at(1_767_398_400_000 + number * HOUR_MS // 4)
            for part in rows_of(path, columns, schema, window):
                times = part[TIMESTAMP].to_numpy()
                assert ((times >= window.start) & (times < window.end)).all()
                found += part["row_id"].to_pylist()
        assert sorted(found) == sorted(rows["row_id"].to_pylist())


def test_a_shard_that_cannot_be_used_is_told_in_one_line(shard):
    path, asked = shard
    whole = path.read_bytes()

    def told(change):
        path.write_bytes(whole)
        change()
        facts = scan(path, *asked)
        assert facts.rows == {} and facts.newest is None and "\n" not in facts.problem
        assert facts.problem.startswith(str(path))
        return facts.problem

    labels = pa.array([0.0, 1.0] * 32 + [0.5] + [0.0] * 63, pa.float32())
    assert "row group 2: column 'label_like' holds 0.5; a label is 0, 1 or NaN" in told(
        lambda: changed(path, "label_like", labels)
    )
    ids = pa.array([1] * 100 + [31] + [2] * 27, pa.int64())
    assert "row group 3: feature 'hour' holds id 31, but table 'hour' has 32 rows, for ids from 0 to 30" in told(
        lambda: changed(path, "hour", ids)
    )
    buckets = pa.array([0] * 127 + [7], pa.int64())
    assert "row group 3: feature 'duration_bucket' holds bucket 7, but its boundaries make 7 from 0 on" in told(
        lambda: changed(path, "duration_bucket", buckets)
    )
    for values, kind in (
        (pa.array([1] * 128, pa.uint64()), "uint64"),
        (pa.array([1] * 128, pa.int32()), "int32"),
        (pa.array([[1]] * 128, pa.large_list(pa.int64())), "large_list<"),
    ):
        name = "watched" if "list" in kind else "video_id"
        assert f"column {name!r} is {kind}" in told(lambda n=name, v=values: changed(path, n, v))
    lists = pa.array([[1], None, *[[2, None]] * 126], pa.list_(pa.field("item", pa.int64())))
    assert "column 'watched' " in told(lambda: changed(path, "watched", lists))
    nulls = pa.array([None, *range(127)], pa.int64())
    assert "row group 0: column 'user_id' has 1 nulls" in told(lambda: changed(path, "user_id", nulls))
    assert "column 'user_id' is string, not int64" in told(lambda: changed(path, "user_id", pa.array(["x"] * 128)))
    assert "has no column 'user_id'" in told(lambda: pq.write_table(pq.read_table(path).drop_columns("user_id"), path))
    assert "not a whole Parquet file" in told(lambda: path.write_bytes(whole[: len(whole) // 2]))

    def damage_a_page():
        group = pq.ParquetFile(path).metadata.row_group(1)
        place = next(group.column(i) for i in range(group.num_columns) if group.column(i).path_in_schema == "hour")
        middle = place.data_page_offset + place.total_compressed_size // 2
        path.write_bytes(whole[:middle] + bytes([whole[middle] ^ 255]) + whole[middle + 1 :])

    assert "row group 1 cannot be read" in told(damage_a_page)


@pytest.mark.parametrize(("version", "was"), [(None, "is not there"), ("4", "is '4'")])
def test_a_shard_that_does_not_say_that_its_ids_are_keys_is_set_aside(shard, version, was):
    """One of rows of tables, as they were prepared before, has the same columns."""
    path, asked = shard
    metadata = {} if version is None else {"rankmixer_dist.format": version}
    pq.write_table(pq.read_table(path).replace_schema_metadata(metadata), path)
    assert scan(path, *asked).problem == (
        f"{path}: rankmixer_dist.format in its Parquet metadata {was}, not 5, which says that ids are keys; prepare it "
        "with this version"
    )


@pytest.mark.parametrize("key", [None, 2**63 - 1, -(2**63), -1])
def test_a_hashed_id_may_be_any_key_or_none(shard, key):
    path, asked = shard
    changed(path, "video_id", pa.array([key] * 128, pa.int64()))
    assert scan(path, *asked).problem is None


def test_unknown_labels_are_no_problem(shard):
    path, asked = shard
    changed(path, "label_like", pa.array([float("nan")] * 128, pa.float32()))
    assert scan(path, *asked).problem is None


@pytest.mark.parametrize(
    ("number", "mend"), [(errno.ENOSPC, "free some space"), (errno.EIO, "mend that and start again")]
)
def test_only_a_full_disk_asks_for_space(shard, monkeypatch, number, mend):
    _, (schema, _, plan) = shard

    def fails(*_):
        raise OSError(number, "told")

    monkeypatch.setattr(worker, "figures", fails)
    monkeypatch.setattr(worker, "score", fails)
    one = worker.Worker(lambda checkpoint: checkpoint, schema, 64, plan)
    with pytest.raises(UserError, match=rf"its scores cannot be sorted \(.*told\); {mend}$"):
        one.figures([], plan.at(plan.start_ms), "step-1")
    item = Item(Path("in.parquet"), "", plan.at(plan.start_ms), Path("step-1"), Path("out.parquet"))
    with pytest.raises(UserError, match=rf"out.parquet: cannot be written \(.*told\); {mend}$"):
        one.score(item)


@dataclass(frozen=True)
class Made:
    """A checkpoint."""

    path: Path
    step: int
    trained_until: int | None
    ends_split: bool = True


def made(step, until, ends_split=True):
    return Made(Path(f"step-{step:08d}"), step, until, ends_split)


def test_a_window_takes_the_newest_checkpoint_that_has_seen_nothing_of_it():
    known = [made(1, 100), made(2, 200, ends_split=False), made(3, 200), made(4, 300), made(5, None)]
    assert newest_before(99, known) is None
    assert newest_before(100, known) == known[0]
    assert newest_before(250, known) == known[2]
    assert newest_before(1000, known) == known[3]
    # The end of the split at the start is the best there can be; the middle of it is not.
    assert is_settled(100, known[:1]) and not is_settled(101, known[:1])
    assert not is_settled(200, known[:2]) and is_settled(200, known[:3])
    assert is_settled(150, known[:2]) and not is_settled(301, known)


@pytest.fixture
def published(tmp_path):
    """Makes checkpoints that hold a file in a folder."""

    def make(step, until, ends_split=True):
        path = tmp_path / "checkpoints" / f"step-{step:08d}"
        (path / "tensors").mkdir(parents=True)
        (path / "tensors" / "file").write_text(str(step))
        (path / "checkpoint.json").write_text(json.dumps([step, until, ends_split]))
        return Made(path, step, until, ends_split)

    return make


def describe(path):
    return Made(path, *json.loads((path / "checkpoint.json").read_text()))


def test_pinned_checkpoints_stay_as_long_as_a_window_may_need_them(tmp_path, published):
    pins = Pins(tmp_path / "pins", describe)
    known = [published(1, 100), published(2, 200, ends_split=False), published(3, 200), published(4, 300)]
    for checkpoint in known:
        pins.pin(checkpoint)
        shutil.rmtree(checkpoint.path)  # as training does
    assert (pins.held["step-00000001"].path / "tensors" / "file").read_text() == "1"

    def drop(needed, horizon):
        found = pins.superseded(needed, horizon)
        for checkpoint in found:
            pins.remove(checkpoint)
        return [checkpoint.step for checkpoint in found]

    drop([], 100)
    assert list(pins.held) == ["step-00000001", "step-00000003", "step-00000004"]
    (tmp_path / "pins" / "step-00000009.partial").mkdir()  # killed while it copied
    pins = Pins(tmp_path / "pins", describe)
    assert sorted(pins.held) == ["step-00000001", "step-00000003", "step-00000004"]
    drop(["step-00000001"], 299)
    assert sorted(pins.held) == ["step-00000001", "step-00000003", "step-00000004"]
    assert drop([], 299) == [1]
    assert sorted(pins.held) == ["step-00000003", "step-00000004"]
    drop([], 10_000)
    assert sorted(path.name for path in (tmp_path / "pins").iterdir()) == ["step-00000004"]


def test_a_checkpoint_that_training_removes_meanwhile_is_not_pinned(tmp_path, published):
    pins = Pins(tmp_path / "pins", describe)
    gone = published(1, 100)
    shutil.rmtree(gone.path)
    pins.pin(gone)
    assert pins.held == {} and list((tmp_path / "pins").iterdir()) == []


def facts(name, rows, newest=None, problem=None):
    return Facts(name, Stamp(1, 2), "sum", rows, 0, newest, problem)


def test_state_is_what_was_written(tmp_path):
    folder = tmp_path / "stream"
    first, second = PLAN.at(PLAN.start_ms), PLAN.at(PLAN.start_ms + PLAN.length_ms)
    state = State(tmp_path, folder, PLAN)
    state.add_shard(facts("a.parquet", {first: 3, second: 1}, newest=5))
    state.add_shard(facts("b", {}, problem="b: broken"))
    state.choose(first, Choice("step-00000001", 1, 100))
    state.choose(second, Choice(None, reason="none"))
    state.target("a.parquet", first).parent.mkdir(parents=True)
    state.target("a.parquet", first).touch()
    left = state.target("a.parquet", first).with_name("a.x.partial")
    left.touch()
    state.tell(second, ["a.parquet"], None, "none")
    state.drop(made(7, 50))
    state.close()

    def check(state):
        assert state.windows() == [first, second] and state.newest == 5
        assert state.choices == {first: Choice("step-00000001", 1, 100), second: Choice(None, reason="none")}
        assert state.is_told(second) and not state.is_told(first)
        assert state.problems == {"b": "b: broken"}
        assert state.told[second]["revision"] == 1 and state.told[second]["unscored_rows"] == 1

    again = State(tmp_path, folder, PLAN)
    check(again)
    assert again.done == {("a.parquet", first)}
    assert not left.exists()
    assert again.needed() == {"step-00000001"} and [each.step for each in again.dropped] == [7]
    again.add_shard(facts("c.parquet", {second: 2}))
    assert not again.is_told(second)
    again.tell(second, ["a.parquet", "c.parquet"], Figures(3, 0, 0, {}), None)
    assert again.told[second]["revision"] == 2
    again.close()
    with pytest.raises(UserError, match="holds windows of 21600 s from 2026-01-01T00:00:00Z, the config's are 60 s"):
        State(tmp_path, folder, replace(PLAN, length_ms=60_000))
