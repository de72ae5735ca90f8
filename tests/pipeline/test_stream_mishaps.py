"""What goes wrong around a streaming evaluation: checkpoints that are gone, shards that mislead, files that are not."""

import os
from datetime import UTC, datetime, timedelta

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from data_pipeline.streaming.lines import LineFile
from rankmixer_dist.checksum import file_checksum
from tests.pipeline.stream_harness import WINDOWS, Killed, Stream, bring, publish


@pytest.fixture
def stream(days_config, tmp_path):
    return Stream(days_config, tmp_path / "one")


def changed(stream, name, as_name, **columns):
    """A shard with other values in some columns arrives."""
    table = pq.read_table(stream.config.data.prepared / name)
    for column, change in columns.items():
        place = table.schema.get_field_index(column)
        values = pa.array(change(table[column].to_numpy()), table.schema.field(column).type)
        table = table.set_column(place, table.schema.field(column), values)
    aside = stream.incoming / ".aside"
    pq.write_table(table, aside)
    aside.rename(stream.incoming / as_name)


def by_day(stream):
    return {line["start"][8:10]: line for line in stream.lines()}


def test_an_older_checkpoint_does_not_stand_in_for_one_that_training_removed(stream):
    # Nobody looks while days 2 to 4 are published, of which training keeps two.
    with pytest.raises(Killed):
        stream.evaluate(*publish(stream, 1), lambda: None, kill_after=2)
    for day in (2, 3, 4):
        stream.run.publish(day)
    stream.evaluate(*bring(stream, stream.shards(*WINDOWS)))
    lines = by_day(stream)
    assert [lines[day]["step"] for day in ("02", "04", "05")] == [1, 3, 4]
    assert lines["03"]["scored"] is False
    assert lines["03"]["reason"].startswith("the checkpoint trained up to 2026-01-03T00:00:00Z was gone before")


def test_rows_of_shards_that_were_prepared_apart_are_not_taken_for_the_same(stream):
    (name, *others) = stream.shards("day2")

    def number_alike():
        changed(stream, name, "apart.parquet", user_id=lambda users: users + 1000)

    stream.evaluate(*publish(stream, 1), *bring(stream, [name, *others]), number_alike)
    (line,) = stream.lines()
    assert (line["rows"], line["duplicates"]) == (360 + 128, 0)


@pytest.mark.parametrize("unit", ["ms", "us"])
def test_a_time_to_come_sets_its_shard_aside_and_closes_nothing(stream, unit):
    names = stream.shards("day2")
    soon = datetime.now(UTC) + timedelta(hours=25)

    def wrong(times):
        times = times.copy()
        times[3] = soon.timestamp() * (1000 if unit == "ms" else 1_000_000)
        return times

    first = [lambda: changed(stream, names[0], "a.parquet", timestamp=wrong)]
    stream.evaluate(*publish(stream, 1), *first, *bring(stream, names))
    (line,) = stream.lines()
    assert (line["rows"], line["revision"]) == (360, 1)
    (told,) = stream.lines("shard")
    assert "a.parquet: row group 0: column 'timestamp' holds" in told["problem"]
    assert "a time to come (stream.ahead_hours)" in told["problem"]


def test_windows_close_while_shards_keep_coming(stream):
    names = stream.shards("test")
    told = []

    def another():
        stream.arrive(names[0], as_name=f"more-{len(told)}.parquet")
        told.append(len(stream.lines()) if (stream.run_dir / "stream_eval.jsonl").exists() else 0)

    # One call a pass is done: what is read, scored and closed has to share them with what keeps coming.
    events = [*publish(stream, 1, 2, 3, 4), *bring(stream, stream.shards("day2")), *[another] * 12, *[lambda: None] * 4]
    stream.evaluate(*events, *[another] * 4)
    assert told[12] > 0


def test_checkpoints_stay_while_what_came_with_them_is_read(days_config, tmp_path):
    stream = Stream(days_config, tmp_path / "one", "stream.keep_windows=1")

    def all_at_once():
        for number, name in enumerate(reversed(stream.shards(*WINDOWS))):
            stream.arrive(name, as_name=f"{number:02d}.parquet")

    stream.evaluate(*publish(stream, 1, 2, 3, 4), all_at_once)
    assert [(line["scored"], line["step"]) for _, line in sorted(by_day(stream).items())] == [
        (True, 1), (True, 2), (True, 3), (True, 4),
    ]  # fmt: skip


def test_a_shard_that_the_manifest_names_and_that_is_not_there_is_told(stream):
    names = stream.shards("day2")
    expected = {name: file_checksum(stream.config.data.prepared / name) for name in names}
    stream.evaluate(*publish(stream, 1), *bring(stream, names[1:]), expected=expected)
    newest = {line["shard"]: line["problem"] for line in stream.lines("shard")}
    assert "the manifest names it, but it is not there" in newest.pop(names[0])
    assert set(newest.values()) <= {None}  # those that came later


def test_who_is_killed_between_two_lines_tells_afterwards(stream, monkeypatch):
    append = LineFile.append

    def killed(lines, line):
        if line["kind"] == "shard" and "rows" not in line:
            raise Killed
        append(lines, line)

    (stream.incoming / "broken.parquet").write_bytes(b"no parquet")
    with monkeypatch.context() as patched:
        patched.setattr(LineFile, "append", killed)
        with pytest.raises(Killed):
            stream.evaluate(*publish(stream, 1))
    assert stream.lines("shard") == []
    stream.evaluate()
    (told,) = stream.lines("shard")
    assert "not a whole Parquet file" in told["problem"]


def test_a_shard_that_could_not_be_read_for_a_moment_is_read_again(stream):
    names = stream.shards("day2")
    path = stream.incoming / names[0]

    os.mkfifo(stream.incoming / "pipe.parquet")  # reading it would wait for ever
    # A folder cannot be read as a file.
    moments = [path.mkdir, *[lambda: None] * 4, path.rmdir]
    stream.evaluate(*publish(stream, 1), *bring(stream, names[1:]), *moments, *bring(stream, names[:1]))
    (line,) = stream.lines()
    assert (line["rows"], line["revision"]) == (360, 1)
    told = {name: [line["problem"] for line in stream.lines("shard") if line["shard"] == name] for name in names}
    assert [problem is None for problem in told[names[0]]] == [False, True]
    (pipe,) = (line["problem"] for line in stream.lines("shard") if line["shard"] == "pipe.parquet")
    assert pipe.endswith("pipe.parquet: is no regular file; publish one")
