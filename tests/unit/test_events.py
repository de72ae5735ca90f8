"""Events in aligned columns: one position is one event in all of them, whatever is missing, grouped or not."""

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from data_pipeline.groups import KEY, ORDER_FIELDS, WINDOW, Grouping, fold, unfold, user_side
from data_pipeline.hashing import hash_strings
from data_pipeline.id_range import id_beyond_table
from data_pipeline.manifest import prepared_columns, prepared_meaning, schema_hash
from data_pipeline.transforms import prepare
from rankmixer_dist.config import load_config
from rankmixer_dist.errors import UserError
from rankmixer_dist.schema import Schema
from rankmixer_dist.train.build import weightless_model

NEWEST = 4
DECLARED = {
    "tables": {"video": {"rows": 9, "dim": 8, "ids": "identity"}, "author": {"rows": 50, "dim": 4}},
    "groups": {"all": 1},
    "features": {"candidate": {"kind": "id", "table": "video", "group": "all"}},
    "sequences": {
        "history": {
            "max_length": NEWEST,
            "columns": {
                "video": {"kind": "id", "table": "video", "column": "videos"},
                "author": {"kind": "id", "table": "author"},
                "action": {"kind": "flags", "of": ["long", "like"]},
                "play": {"kind": "numeric", "transform": "log1p"},
                "time": {"kind": "time"},
            },
        }
    },
    "tasks": {"finish": {}},
}
SCHEMA = Schema.model_validate(DECLARED)
RAW = ("videos", "author", "long", "like", "play", "time")
ITEMS = (pa.int64(), pa.string(), pa.bool_(), pa.int8(), pa.float32(), pa.int64())


def done(rows, *, grouping=None, schema=SCHEMA):
    """Raw lists by column of each row, prepared."""
    count = len(rows)
    raw = {"row_id": range(count), "user_id": [7] * count, "timestamp": [50] * count, "finish": [0] * count}
    lists = {n: pa.array([row[n] for row in rows], pa.list_(i)) for n, i in zip(RAW, ITEMS, strict=True)}
    table = pa.table({**raw, "candidate": pa.array([None] * count, pa.int64()), **lists})
    return prepare(table, schema, truth_columns={}, time_ranges={"all": (0, 100)}, grouping=grouping)


def naive(row):
    """What a row's prepared events should be, one after the other."""
    length = max(len(row[name] or []) for name in RAW)
    events = []
    for place in range(length):
        video, author, long, like, play, time = (row[n][place] if row[n] is not None else None for n in RAW)
        key = None if author in (None, "") else hash_strings(pa.array([author])).view(np.int64)[0]
        action = (long or 0) + 2 * (like or 0)
        number = float("nan") if play is None else np.log1p(np.float32(max(play, 0)))
        events.append({"video": video, "author": key, "action": action, "play": number, "time": time})
    return events[-NEWEST:]


def event_lists(length):
    """Six lists of one length with holes in each, or no list at all in some."""
    choices = (
        st.integers(0, 7), st.sampled_from(["a", "b", ""]), st.booleans(), st.integers(0, 1),
        st.floats(-2, 1e6, width=32), st.integers(0, 49),
    )  # fmt: skip
    lists = {
        name: st.none() | st.lists(st.none() | items, min_size=length, max_size=length)
        for name, items in zip(RAW, choices, strict=True)
    }
    return st.fixed_dictionaries(lists)


some_rows = st.lists(st.integers(0, 7).flatmap(event_lists), min_size=1, max_size=6)


@given(some_rows)
def test_a_missing_value_is_a_missing_value_and_shifts_no_other(rows):
    found = done(rows)
    assert not found.set_aside.num_rows
    for got, row in zip(found.rows["history"].to_pylist(), rows, strict=True):
        wanted = naive(row)
        assert [{**event, "play": None} for event in got] == [{**event, "play": None} for event in wanted]
        np.testing.assert_allclose([e["play"] for e in got], [e["play"] for e in wanted], rtol=1e-6)


@given(some_rows, st.integers(1, 4))
def test_grouped_events_are_those_without_groups(rows, row_group_rows):
    side = user_side(SCHEMA)
    assert side == {"history": NEWEST}
    prepared = done(rows, grouping=Grouping("user_id", None, side)).rows
    folded, _ = fold(prepared, side, row_group_rows=row_group_rows)
    np.testing.assert_equal(
        unfold(folded, side)["history"].to_pylist(), prepared.drop_columns([WINDOW, KEY])["history"].to_pylist()
    )


def test_a_growing_history_is_written_once_with_all_its_columns():
    row = {"videos": [1, 2, 1, 2, 1], "author": ["a", None, "b", "b", None], "long": None, "like": [0, 1, 0, 1, 0]}
    row |= {"play": [1.0, None, 2.0, 1.0, 3.0], "time": [1, 2, None, 4, 5]}
    rows = [{n: None if v is None else v[:k] for n, v in row.items()} for k in (0, 2, 2, 5)]
    side = user_side(SCHEMA)
    prepared = done(rows, grouping=Grouping("user_id", None, side)).rows
    folded, changes = fold(prepared, side, row_group_rows=9)
    assert not changes
    assert folded["group_start"].to_pylist() == [True, False, False, False]
    assert folded["visible_history"].to_pylist() == [0, 2, 2, 5]
    assert [event["time"] for event in folded["history"].to_pylist()[0]] == [1, 2, None, 4, 5]
    assert [len(events) for events in folded["history"].to_pylist()] == [5, 0, 0, 0]


def bad(column, values):
    row = {name: [None, None] for name in RAW} | {column: values}
    found = done([row, dict.fromkeys(RAW)])
    assert found.rows["history"].to_pylist() == [[]]
    (aside,) = found.set_aside.to_pylist()
    return aside["set_aside_reason"], aside["set_aside_detail"]


@pytest.mark.parametrize(
    ("column", "values", "reason"),
    [
        ("like", [1], "events_not_aligned"),
        ("author", [], "events_not_aligned"),
        ("like", [1, 2], "event_flag_not_0_or_1"),
        ("videos", [8, 1], "id_beyond_table"),
        ("videos", [-1, 1], "id_out_of_range"),
        ("play", [float("inf"), 1], "numeric_not_finite"),
        ("time", [1, 50], "event_not_before_row"),
    ],
)
def test_events_that_cannot_be_prepared_are_set_aside_with_their_column(column, values, reason):
    assert bad(column, values) == (reason, column)


def test_a_key_beyond_its_table_is_told_by_the_events_column():
    rows = done([{name: [None] for name in RAW} | {"videos": [7]}]).rows
    assert id_beyond_table(rows, SCHEMA) is None
    smaller = Schema.model_validate(
        {**DECLARED, "tables": {**DECLARED["tables"], "video": {"rows": 8, "dim": 8, "ids": "identity"}}}
    )
    assert id_beyond_table(rows, smaller).startswith("events 'history.video' hold id 7")


def test_what_prepared_rows_mean_takes_events_in_and_nothing_else():
    plain = Schema.model_validate(
        {k: v for k, v in DECLARED.items() if k != "sequences"} | {"tables": {"video": DECLARED["tables"]["video"]}}
    )
    assert prepared_meaning(plain).keys() == {"features", "tasks"}
    history = DECLARED["sequences"]["history"]
    rows = Schema.model_validate({**DECLARED, "sequences": {"history": {**history, "scope": "row"}}})
    assert schema_hash(rows) == schema_hash(SCHEMA) != schema_hash(plain)
    shorter = Schema.model_validate({**DECLARED, "sequences": {"history": {**history, "max_length": 3}}})
    assert schema_hash(shorter) != schema_hash(SCHEMA)
    assert prepared_columns(SCHEMA, has_truth=False).names[-1] == "history"
    assert len(ORDER_FIELDS) == 2


@pytest.mark.parametrize(
    ("sequences", "told"),
    [
        ({"candidate": {"columns": {"v": {"kind": "id", "table": "video"}}}}, "the name is a column's"),
        ({"h": {"columns": {"v": {"kind": "id", "table": "none"}}}}, "'none' is not declared"),
        ({"h": {"columns": {"f": {"kind": "flags", "of": ["a", "a"]}}}}, "named twice"),
        ({"h": {"columns": {"f": {"kind": "flags", "of": ["finish"]}}}}, "is the label of task finish"),
        ({"h": {"columns": {"a": {"kind": "time"}, "b": {"kind": "time"}}}}, "an event has one time"),
        ({"h": {"columns": {}}}, "at least 1 item"),
    ],
)
def test_declarations_that_make_no_sense_are_refused(sequences, told):
    with pytest.raises(ValidationError, match=told):
        Schema.model_validate({**DECLARED, "sequences": sequences})


def test_no_model_reads_them_yet(small_config):
    config = load_config(small_config)
    features = config.features.model_dump() | {"sequences": {"h": {"columns": {"t": {"kind": "time"}}}}}
    told = config.model_copy(update={"features": Schema.model_validate(features)})
    with pytest.raises(UserError, match="features.sequences.h: no model reads events yet"):
        weightless_model(told)
