"""The loop of a streaming evaluation in one process: late, repeated, broken and changed shards, deaths, checkpoints."""

import json
import random

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from data_pipeline.streaming import scoring
from rankmixer_dist.errors import UserError
from rankmixer_dist.metrics import TaskMetrics, Window
from tests.pipeline.stream_harness import WINDOWS, Killed, Stream, bring, publish


@pytest.fixture
def stream(days_config, tmp_path):
    return Stream(days_config, tmp_path / "one")


@pytest.fixture(scope="module")
def undisturbed(days_config, tmp_path_factory):
    """The final lines where all is there in order."""
    stream = Stream(days_config, tmp_path_factory.mktemp("undisturbed") / "one")
    stream.evaluate(*publish(stream, 1, 2, 3, 4), *bring(stream, stream.shards(*WINDOWS)))
    return stream.final()


def test_each_window_has_the_exact_figures_of_its_day(stream, undisturbed):
    assert [line["step"] for line in undisturbed.values()] == [1, 2, 3, 4]
    for day, (start, line) in enumerate(undisturbed.items(), start=1):
        assert start == f"2026-01-0{day + 1}T00:00:00Z" == line["trained_until"]
        rows = pa.concat_tables(
            pq.read_table(stream.config.data.prepared / name) for name in stream.shards(WINDOWS[day - 1])
        )
        assert (line["rows"], line["duplicates"], line["unscored_rows"]) == (rows.num_rows, 0, 0)
        for place, task in enumerate(stream.config.features.tasks):
            seed = rows["row_id"].to_numpy() * (7919, 104729, 1299709)[place] + day * 31
            metrics = TaskMetrics()
            scores = ((seed % 1009) / 1009).astype(np.float32)
            metrics.update(scores, rows[f"label_{task}"].to_numpy(), rows["user_id"].to_numpy())
            assert line["tasks"][task] == metrics.compute()


def test_a_window_of_many_rows_is_sorted_on_disk(stream, undisturbed, monkeypatch):
    monkeypatch.setattr(scoring, "_HELD_ROWS", 0)
    monkeypatch.setattr(scoring, "_MEMORY_ROWS", 70)
    left = stream.run_dir / "stream" / "scores" / "20260102T000000Z" / "killed.partial" / "run-0"
    left.mkdir(parents=True)
    stream.evaluate(*publish(stream, 1, 2, 3, 4), *bring(stream, stream.shards(*WINDOWS)))
    assert stream.final() == undisturbed
    assert not list((stream.run_dir / "stream").rglob("*.partial"))


def test_scores_of_two_checkpoints_are_not_pooled(stream):
    stream.evaluate(*publish(stream, 1, 2), *bring(stream, stream.shards(*WINDOWS[:2])))
    one, other = (
        sorted((stream.run_dir / "stream" / "scores" / f"2026010{day}T000000Z").glob("*.parquet"))[0] for day in (2, 3)
    )
    with pytest.raises(UserError, match=r"scores of step-00000002, which do not rank against those of step-00000001; "):
        scoring.figures([one, other], Window(0, 1000), "step-00000001", tuple(stream.config.features.tasks))


@pytest.mark.parametrize("seed", range(4))
def test_neither_order_nor_deaths_change_a_digit(days_config, tmp_path, undisturbed, seed):
    stream = Stream(days_config, tmp_path / "one")
    shuffled = random.Random(seed)
    names = stream.shards(*WINDOWS)
    shuffled.shuffle(names)
    events = bring(stream, names)
    for place, event in zip(sorted(shuffled.sample(range(len(events)), 4)), publish(stream, 1, 2, 3, 4), strict=True):
        events.insert(place, event)
    done = 0
    while done < len(events):
        kill_after = shuffled.randint(1, 12)
        try:
            stream.evaluate(*events[done:], kill_after=kill_after)
        except Killed:
            done += kill_after
        else:
            break
        for path in (stream.run_dir / "stream_eval.jsonl", stream.run_dir / "stream" / "ledger.jsonl"):
            with path.open("ab") as file:
                file.write(b'{"kind": "shard", "sh')  # the next line was being written
    stream.evaluate()
    assert stream.final() == undisturbed
    for day, window in zip(WINDOWS, ("20260102", "20260103", "20260104", "20260105"), strict=True):
        rows = [pq.read_table(stream.config.data.prepared / name)["row_id"] for name in stream.shards(day)]
        assert stream.scored_rows(f"{window}T000000Z") == sorted(row for one in rows for row in one.to_pylist())


def test_rows_that_come_after_closing_make_a_new_revision(stream, undisturbed):
    late, *names = stream.shards("day2")
    others = stream.shards("day3", "day4", "test")
    stream.evaluate(*publish(stream, 1, 2, 3, 4), *bring(stream, [*names, *others]))
    (first,) = [line for line in stream.lines() if line["start"] == "2026-01-02T00:00:00Z"]
    stream.evaluate(*bring(stream, [late]))
    _, second = [line for line in stream.lines() if line["start"] == "2026-01-02T00:00:00Z"]
    assert (first["revision"], second["revision"]) == (1, 2)
    assert first["rows"] == second["rows"] - 128 and first["checkpoint"] == second["checkpoint"]
    assert len(stream.lines()) == 5 and stream.final() == undisturbed


def test_a_window_closes_once_rows_are_late_enough(days_config, tmp_path):
    stream = Stream(days_config, tmp_path / "one", "stream.lateness_hours=30", "stream.stop_after_idle_s=null")
    told = []

    def look():
        told.append([line["start"][8:10] for line in stream.lines()])

    idle = [look] * 12
    events = [*publish(stream, 1, 2, 3, 4), *bring(stream, stream.shards("day2", "day3")), *idle]
    with pytest.raises(Killed):
        stream.evaluate(*events, *bring(stream, stream.shards("day4")), *idle, kill_after=60)
    # A row of day 4 can be 30 hours after the end of day 2; none is so long after the end of day 3.
    assert told[11] == [] and told[-1] == ["02"]


def test_repeated_rows_count_once_and_are_reported(stream, undisturbed):
    events = [*publish(stream, 1, 2, 3, 4), *bring(stream, stream.shards(*WINDOWS))]
    stream.evaluate(*events, lambda: stream.arrive("day3-00000.parquet", as_name="again.parquet"))
    found = stream.final()
    assert found["2026-01-03T00:00:00Z"].pop("duplicates") == 128
    expected = json.loads(json.dumps(undisturbed))
    del expected["2026-01-03T00:00:00Z"]["duplicates"]
    assert [line.pop("shards") for line in found.values()] != [line.pop("shards") for line in expected.values()]
    assert found == expected


def test_a_broken_shard_is_set_aside_and_told_and_a_mended_one_is_taken(stream, undisturbed):
    names = stream.shards(*WINDOWS)
    path = stream.incoming / names[0]

    def truncate():
        stream.arrive(names[0], as_name=".whole")
        path.write_bytes((stream.incoming / ".whole").read_bytes()[:1000])

    stream.evaluate(*publish(stream, 1, 2, 3, 4), truncate, *bring(stream, names[1:]))
    (told,) = stream.lines("shard")
    assert told["shard"] == names[0] and f"{path}: not a whole Parquet file" in told["problem"]
    assert "not a whole Parquet file" in (stream.run_dir / "stream.html").read_text()
    assert names[0] not in stream.final()["2026-01-02T00:00:00Z"]["shards"]
    stream.evaluate()
    assert len(stream.lines("shard")) == 1 and len(stream.lines()) == 4
    stream.evaluate(*bring(stream, names[:1]))
    assert stream.final() == undisturbed


def test_a_shard_that_changes_under_its_name_is_refused(stream, undisturbed):
    stream.evaluate(*publish(stream, 1, 2, 3, 4), *bring(stream, stream.shards(*WINDOWS)))
    stream.evaluate(lambda: stream.arrive("day3-00000.parquet", as_name="day2-00000.parquet"))
    stream.evaluate()
    (told,) = stream.lines("shard")
    assert "day2-00000.parquet: changed under its name; publish new rows under a new name" in told["problem"]
    assert stream.final() == undisturbed and len(stream.lines()) == 4


def test_rows_that_are_gone_before_they_are_scored_are_told(stream):
    names = stream.shards("day2")

    def lose():
        (stream.incoming / names[0]).unlink()

    # Without a checkpoint nothing is scored yet.
    stream.evaluate(*bring(stream, names), *[lambda: None] * 6, lose, *publish(stream, 1))
    (line,) = stream.lines()
    assert (line["scored"], line["unscored_rows"]) == (True, 128)
    assert "gone before its rows were scored" in stream.lines("shard")[0]["problem"]


@pytest.mark.parametrize("when", ["before the window is told", "after it", "in the next start"])
def test_rows_that_were_gone_and_come_back_are_scored(stream, undisturbed, when):
    names, path = stream.shards("day2"), stream.incoming / stream.shards("day2")[0]
    aside, window = stream.folder / "aside", "2026-01-02T00:00:00Z"
    lose, come_back = (lambda: path.rename(aside)), (lambda: aside.rename(path))  # with the same time of change
    wait = [lambda: None] * 6
    events = [*bring(stream, names), *wait, lose, *publish(stream, 1), *wait]
    if when == "before the window is told":
        stream.evaluate(*events, come_back)
    elif when == "after it":  # which the next window's rows bring about
        stream.evaluate(*events, *publish(stream, 2), *bring(stream, stream.shards("day3")), *wait, come_back)
    else:
        stream.evaluate(*events)
        stream.evaluate(come_back)

    def unscored():
        return [line["unscored_rows"] for line in stream.lines() if line["start"] == window]

    expected = [0] if when == "before the window is told" else [128, 0]
    assert unscored() == expected
    assert stream.final()[window] == undisturbed[window]
    assert [line["problem"] is None for line in stream.lines("shard")] == [False, True]
    stream.evaluate()
    assert unscored() == expected


def test_a_window_waits_for_its_checkpoint_which_then_stays(stream, undisturbed):
    names = stream.shards(*WINDOWS)
    # The newest first: what the days before need has to stay though nothing is known of them yet.
    stream.evaluate(*bring(stream, names[:1]), *publish(stream, 1, 2, 3, 4), *bring(stream, names[:0:-1]))
    assert stream.final() == undisturbed


def test_a_window_without_a_checkpoint_says_why(stream):
    stream.evaluate(*publish(stream, 2), *bring(stream, stream.shards("day2", "day3")))
    unscored, scored = stream.lines()
    assert unscored["scored"] is False and unscored["tasks"] == {} and unscored["unscored_rows"] == 360
    assert unscored["reason"] == (
        "no checkpoint is known to have been trained on nothing at or after 2026-01-02T00:00:00Z"
    )
    assert scored["scored"] is True and scored["step"] == 2


def test_what_comes_too_late_for_its_checkpoint_is_told(days_config, tmp_path):
    stream = Stream(days_config, tmp_path / "one", "stream.keep_windows=1")
    late, *names = stream.shards("day2")
    stream.evaluate(*publish(stream, 1, 2, 3, 4), *bring(stream, [*names, *stream.shards("day4", "test")]))
    stream.evaluate(*bring(stream, stream.shards("test")))  # looks once more, all told
    kept = {path.name for path in (stream.run_dir / "stream" / "checkpoints").iterdir()}
    assert kept == {"step-00000003", "step-00000004"}
    stream.evaluate(*bring(stream, [late, *stream.shards("day3")]))
    lines = {(line["start"][8:10], line["revision"]): line for line in stream.lines()}
    assert lines["02", 2]["unscored_rows"] == 128 and lines["02", 2]["rows"] == 232
    assert "step-00000001, which scored this window, is no longer kept" in stream.lines("shard")[0]["problem"]
    # An older checkpoint would do, but day 3 would look worse than it is.
    assert lines["03", 1]["scored"] is False
    assert lines["03", 1]["reason"].startswith("step-00000002, which is the one to score it, is no longer kept")


def test_rows_from_before_the_first_window_are_counted(stream):
    stream.evaluate(*publish(stream, 1), *bring(stream, stream.shards("train", "day2")))
    assert [line["start"] for line in stream.lines()] == ["2026-01-02T00:00:00Z"]
    page = (stream.run_dir / "stream.html").read_text()
    assert "360 rows are from before the first window" in page and 'http-equiv="refresh"' not in page


def test_a_window_does_not_close_while_shards_are_being_read(stream):
    def all_at_once():
        stream.arrive("test-00000.parquet", as_name="a.parquet")  # is read first, and makes day 2 old
        for name in stream.shards("day2"):
            stream.arrive(name)

    # Without a checkpoint of its own, day 2 has nothing to wait for but its rows.
    stream.evaluate(*publish(stream, 2), all_at_once)
    (line,) = [line for line in stream.lines() if line["start"] == "2026-01-02T00:00:00Z"]
    assert (line["revision"], line["unscored_rows"]) == (1, 360)
