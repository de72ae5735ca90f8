"""Past events from a user's lists, against the history that the lists were cut from."""

from pathlib import Path

import pyarrow as pa
from hypothesis import given, settings
from hypothesis import strategies as st

from data_pipeline.sources.kuairand_past import past_events, past_units

KEPT = 5
FILE_INDEX = 3
HISTORIES = st.lists(st.lists(st.tuples(st.integers(0, 6), st.booleans(), st.booleans()), max_size=12), max_size=6)


def lists_of(history):
    """The newest KEPT watches, long watches and likes of (video, long, like) events, oldest first."""
    return (
        [video for video, _, _ in history][-KEPT:],
        [video for video, long, _ in history if long][-KEPT:],
        [video for video, _, like in history if like][-KEPT:],
    )


def sequences_of(histories):
    watch, long, like = zip(*(lists_of(history) for history in histories), strict=True) if histories else ((), (), ())
    ids = pa.list_(pa.int64())
    return pa.table(
        {
            "user_id": pa.array(range(100, 100 + len(histories)), pa.int64()),
            "history_len": pa.array([len(history) for history in histories], pa.int64()),
            "last_time_ms": pa.array([10_000_000_000 + user for user in range(len(histories))], pa.int64()),
            "watch_seq": pa.array(watch, ids),
            "like_seq": pa.array(like, ids),
            "long_watch_seq": pa.array(long, ids),
        }
    )


def events_of(sequences):
    units = past_units(Path("sequences.parquet"), FILE_INDEX, sequences)
    tables = [past_events(unit, sequences) for unit in units]
    assert [table.num_rows for table in tables] == [unit.rows for unit in units]
    return [row for table in tables for row in table.to_pylist()]


@settings(max_examples=300, deadline=None)
@given(HISTORIES)
def test_events_are_those_of_the_history(histories):
    rows = events_of(sequences_of(histories))
    assert [row["row_id"] for row in rows] == [(FILE_INDEX << 40) + n for n in range(len(rows))]
    place = 0
    for user, history in enumerate(histories):
        watch, long, like = lists_of(history)
        for index in range(max(0, len(history) - KEPT), len(history)):
            row, (video, _, _) = rows[place], history[index]
            place += 1
            earlier = history[:index]
            assert row["user_id"] == 100 + user
            assert row["video_id"] == video
            assert row["history_len"] == index
            assert row["time_ms"] == 10_000_000_000 + user - 3_600_000 * (len(history) - 1 - index)
            assert row["watch_seq"] == watch[: index - max(0, len(history) - KEPT)]
            # What is shown of the past is of the past: a prefix of the list, no longer than what had happened.
            assert row["long_watch_seq"] == long[: len(row["long_watch_seq"])]
            long_after = sum(long for _, long, _ in history[index:])
            assert len(row["long_watch_seq"]) <= max(0, len(long) - long_after)
            assert len(row["like_seq"]) <= max(0, len(like) - sum(like for _, _, like in history[index:]))
            for kind in ("watch", "like", "long_watch"):
                assert row[f"user_{kind}_count"] == len(row[f"{kind}_seq"])
            shown_once = watch.count(video) == 1
            assert (row["is_like"] is not None) == (row["long_view"] is not None) == shown_once
            once_ever = [v for v, _, _ in earlier].count(video) == 0 and shown_once
            if once_ever:
                assert row["long_view"] == history[index][1]
                assert row["is_like"] == history[index][2]
    assert place == len(rows)


def test_a_video_watched_twice_has_no_label_and_hides_what_is_not_certain():
    (sequences,) = [sequences_of([[(1, True, False), (2, False, False), (1, False, True), (3, True, True)]])]
    rows = events_of(sequences)
    assert [row["long_view"] for row in rows] == [None, 0, None, 1]
    assert [row["is_like"] for row in rows] == [None, 0, None, 1]
    # The long watch of video 1 may have been its second: before that one nothing is certain.
    assert [row["long_watch_seq"] for row in rows] == [[], [], [], [1]]
    assert [row["like_seq"] for row in rows] == [[], [], [], [1]]


def test_units_cut_users_apart():
    histories = [[(user % 7, True, False)] * (user % 3) for user in range(9000)]
    sequences = sequences_of(histories)
    units = past_units(Path("x"), 0, sequences)
    assert [unit.rows for unit in units] == [4095, 4096, 809]
    assert len(events_of(sequences)) == sum(len(history) for history in histories)
