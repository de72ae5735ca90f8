"""Grouped rows: what a group shares is written once, and every row reads back what it would have without groups."""

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from data_pipeline.groups import KEY, ORDER_FIELDS, WINDOW, Grouping, first_rows, fold, unfold, user_side, visible
from data_pipeline.manifest import prepared_columns
from rankmixer_dist.schema import GROUP_START, Schema

NEWEST = 3
SCHEMA = Schema.model_validate(
    {
        "tables": {"video": {"rows": 50, "dim": 8}, "word": {"rows": 50, "dim": 8}},
        "groups": {"all": 1},
        "features": {
            "city": {"kind": "id", "table": "word", "group": "all", "scope": "user"},
            "age": {"kind": "numeric", "group": "all", "scope": "user"},
            "likes": {"kind": "multi_id", "table": "word", "group": "all", "scope": "user"},
            "seen": {
                "kind": "sequence", "table": "video", "pooling": "mean", "group": "all", "scope": "user",
                "max_length": NEWEST,
            },
            "video": {"kind": "id", "table": "video", "group": "all"},
            "tags": {"kind": "multi_id", "table": "word", "group": "all"},
        },
        "tasks": {"finish": {}},
    }
)  # fmt: skip
SIDE = user_side(SCHEMA)


def table(rows):
    """Prepared rows on their way to a shard, of dicts with some of the columns."""
    fields = [*prepared_columns(SCHEMA, has_truth=False), *ORDER_FIELDS]
    plain = {"user_id": 0, "timestamp": 0, "label_finish": 0.0, "city": None, "age": float("nan"), "likes": []}
    plain |= {"seen": [], "video": None, "tags": [], WINDOW: 0, KEY: 0}
    filled = [plain | {"row_id": place} | row for place, row in enumerate(rows)]
    return pa.table(
        {f.name: pa.array([row[f.name] for row in filled], f.type) for f in fields}, schema=pa.schema(fields)
    )


def alike(left, right):
    """Whether two tables hold the same, NaN being equal to NaN."""
    assert left.schema.equals(right.schema)
    for name in left.column_names:
        np.testing.assert_equal(left[name].to_pylist(), right[name].to_pylist(), err_msg=name)


def written(rows, row_group_rows=1 << 20):
    folded, changes = fold(table(rows), SIDE, row_group_rows=row_group_rows)
    alike(unfold(folded, SIDE), table(rows).drop_columns([WINDOW, KEY]))
    return folded, changes


some_ids = st.lists(st.integers(0, 2), max_size=NEWEST)
some_rows = st.fixed_dictionaries(
    {
        KEY: st.integers(0, 1),
        WINDOW: st.integers(0, 1),
        "city": st.none() | st.integers(0, 1),
        "age": st.sampled_from([0.0, -0.0, 1.0, float("nan")]),
        "likes": st.lists(st.integers(0, 1), max_size=2),
        "seen": some_ids,
        "video": st.integers(0, 9),
        "tags": st.lists(st.integers(0, 1), max_size=2),
    }
)


@given(st.lists(some_rows, min_size=1, max_size=12), st.integers(1, 7))
def test_rows_read_back_what_they_would_hold_without_groups(rows, row_group_rows):
    folded, _ = written(rows, row_group_rows)
    start = folded[GROUP_START].to_numpy()
    assert start[::row_group_rows].all()
    for first in range(0, len(rows), row_group_rows):  # a reader of one row group needs no other
        alike(
            unfold(folded.slice(first, row_group_rows), SIDE),
            table(rows).drop_columns([WINDOW, KEY]).slice(first, row_group_rows),
        )
    shared = [name for name in SIDE if name != "seen"]
    for place in np.flatnonzero(~start):
        before, row = rows[place - 1], rows[place]
        assert [before[name] for name in (KEY, WINDOW)] == [row[name] for name in (KEY, WINDOW)]
        np.testing.assert_equal([before[name] for name in shared], [row[name] for name in shared])


@given(st.lists(st.integers(0, 2), max_size=12), st.lists(st.integers(0, 12), min_size=1, max_size=8))
def test_a_history_that_grows_is_written_once(events, seen_until):
    """Whatever prefixes rows see in order of time, and however alike the events are."""
    seen_until = np.minimum(np.sort(seen_until), len(events))
    folded, changes = written([{"seen": events[:until][-NEWEST:]} for until in seen_until])
    assert folded[GROUP_START].to_pylist() == [True] + [False] * (len(seen_until) - 1)
    assert not changes
    # No event is written twice: all that is kept is what the first row sees and what came after, or less where events
    # repeat themselves.
    oldest = max(0, seen_until[0] - NEWEST)
    kept = folded["seen"].to_pylist()[0]
    assert len(kept) <= seen_until[-1] - oldest
    if len(set(events)) == len(events):
        gaps = np.maximum(0, np.diff(seen_until) - NEWEST).sum()
        assert len(kept) == seen_until[-1] - oldest - gaps
        assert np.diff(folded[visible("seen")].to_numpy(), prepend=0).min() >= 0


@pytest.mark.parametrize(
    ("first", "second"),
    [([1, 2], [2, 1]), ([1, 2], [2]), ([1, 2, 3], [3]), ([1], [2, 3]), ([1, 2], [])],
)
def test_a_history_that_is_no_other_ones_continuation_begins_a_group(first, second):
    folded, changes = written([{"seen": first}, {"seen": second}])
    assert folded[GROUP_START].to_pylist() == [True, True]
    assert changes == {"seen": 1}


def test_a_value_that_changes_begins_a_group_and_is_counted():
    rows = [{"city": 1, "age": 2.0}, {"city": 1, "age": 2.0}, {"city": 1, "age": 3.0}, {"city": 1, "age": 3.0, KEY: 1}]
    folded, changes = written(rows)
    assert folded[GROUP_START].to_pylist() == [True, False, True, True]
    assert folded["city"].to_pylist() == [1, None, 1, 1]
    assert changes == {"age": 1}


def test_a_group_is_an_id_in_a_window_of_its_split():
    day, start = 86_400_000, 1_000
    ranges = {"a": (start, start + 2 * day), "b": (start + 2 * day, start + 3 * day)}
    time = np.array([start, start + day - 1, start + day, start + 2 * day, start])
    ids = pa.array(["7", "7", "7", "7", None])
    found = Grouping("user_id", day, SIDE).columns(ids, np.arange(5), time, ranges)
    assert found[WINDOW].to_pylist() == [start, start, start + day, start + 2 * day, start]
    keys = found[KEY].to_pylist()
    assert len(set(keys[:4])) == 1 and keys[4] != keys[0]
    number = Grouping("user_id", None, SIDE).columns(pa.array([7] * 5), np.arange(5), time, ranges)
    assert number[KEY].to_pylist() == keys[:4] + keys[:1]  # one id, whatever type holds it
    assert number[WINDOW].to_pylist() == [start] * 3 + [start + 2 * day, start]


def test_rows_without_an_id_are_groups_of_their_own():
    found = Grouping("request", None, SIDE).columns(pa.nulls(9), np.arange(9), np.zeros(9, np.int64), {"a": (0, 1)})
    assert len(set(found[KEY].to_pylist())) == 9


@pytest.mark.parametrize(
    ("column", "values", "told"),
    [(GROUP_START, [False, False], "begins no group"), (visible("seen"), [2, 4], "more events"),
     (visible("seen"), [-1, 3], "more events"), (visible("seen"), [2, 1], "fewer events")],
)  # fmt: skip
def test_rows_that_were_never_written_so_are_refused(column, values, told):
    folded, _ = written([{"seen": [1, 2]}, {"seen": [1, 2, 3]}])
    place = folded.schema.get_field_index(column)
    field = folded.schema.field(place)
    with pytest.raises(pa.ArrowInvalid, match=told):
        unfold(folded.set_column(place, field, pa.array(values, field.type)), SIDE)


def test_first_rows():
    assert first_rows(pa.array([True, False, True, True, False])).tolist() == [0, 0, 2, 3, 3]
    assert first_rows(pa.array([], pa.bool_())).tolist() == []
