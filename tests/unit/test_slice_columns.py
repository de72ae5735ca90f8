"""The columns to slice by: the value of every row, what it is called, and what is refused."""

from pathlib import Path

import numpy as np
import pytest
import torch
import yaml

from rankmixer_dist.batch import Batch, JaggedIds
from rankmixer_dist.config import RunConfig, load_config
from rankmixer_dist.errors import UserError
from rankmixer_dist.metrics import ValueCounts
from rankmixer_dist.train.checkpoint import begun_splits
from rankmixer_dist.train.slice_columns import SliceColumn, slice_columns

HOUR_MS, LARGEST = 3_600_000, 2**63 - 1
USER_ROWS = {11: 1, 12: 2, 13: 2, 14: 5, 15: 9, 16: 40}
"""User -> rows in the training splits."""


pytestmark = pytest.mark.usefixtures("one_rank")


def config(folder: Path, *overrides: str) -> RunConfig:
    """A small run, its splits in a time zone of their own."""
    run = {
        "name": "small",
        "features": {
            "tables": {
                "user": {"rows": 5000, "dim": 4},
                "tab": {"rows": 9, "dim": 4, "ids": "identity"},
                "word": {"rows": 64, "dim": 4},
                "age": {"rows": 8, "dim": 4, "ids": "identity"},
            },
            "groups": {"all": 1},
            "features": {
                "user": {"kind": "id", "table": "user", "group": "all"},
                "words": {"kind": "multi_id", "table": "word", "group": "all"},
                "tab": {"kind": "id", "table": "tab", "group": "all"},
                "word": {"kind": "id", "table": "word", "group": "all"},
                "age": {"kind": "id", "table": "age", "boundaries": [7, 15.5, 30], "group": "all"},
                "length": {"kind": "numeric", "group": "all"},
            },
            "tasks": {"like": {}},
        },
        "source": {"kind": "synthetic", "path": "raw"},
        "data": {
            "prepared": "prepared",
            "splits": {
                "train": {"start": "2026-01-01T00:00:00+08:00", "end": "2026-01-02T00:00:00+08:00"},
                "more": {"start": "2026-01-02T00:00:00+08:00", "end": "2026-01-03T00:00:00+08:00"},
                "test": {"start": "2026-01-03T00:00:00+08:00", "end": "2026-01-05T00:00:00+08:00"},
            },
        },
    }
    path = folder / "run.yaml"
    path.write_text(yaml.safe_dump(run))
    return load_config(path, overrides)


def batch(sliced, *, rows=3, padding=2, **given) -> Batch:
    """A batch of `rows` rows and padding with the keys of the features `sliced`.

    Args:
        given: keys of a feature, None where missing, or `user_id` or `timestamp`, a value a row.
    """
    keys = [[*given.get(feature, [0] * rows), *[None] * padding] for feature in sliced]
    ids = JaggedIds.on_host((), torch.zeros(0, dtype=torch.int64), torch.zeros(0, rows + padding, dtype=torch.int32))

    def padded(name):
        return torch.tensor([*given.get(name, [0] * rows), *[-1] * padding], dtype=torch.int64)

    return Batch(
        row_id_B=torch.arange(rows + padding),
        user_id_B=padded("user_id"),
        timestamp_B=padded("timestamp"),
        weight_B=torch.tensor([1.0] * rows + [0.0] * padding),
        labels_BK=torch.zeros(rows + padding, 1),
        numerics_BN=torch.zeros(rows + padding, 1),
        ids=ids,
        global_weight=float(rows),
        keys_BS=torch.tensor([[key or 0 for key in of] for of in keys], dtype=torch.int64).T if keys else None,
        known_BS=torch.tensor([[key is not None for key in of] for of in keys]).T if keys else None,
    )


KEYS = {"user": np.arange(2000), "tab": [7, 0], "word": [5, LARGEST, -1, 0, -(2**63)]}
"""Feature -> the keys that occur in the rows to be scored."""


def counts(splits, column) -> ValueCounts:
    """The users of training, and the keys of the rows to be scored."""
    state = ValueCounts()
    of_users = np.repeat([*USER_ROWS], [*USER_ROWS.values()])
    state.update(np.array(KEYS[column], np.int64) if column in KEYS else of_users)
    return state


def columns(run: RunConfig, trained_on=("train",)) -> list[SliceColumn]:
    return slice_columns(run, trained_on=trained_on, count_values=counts)


def labels(run: RunConfig, **given) -> list[str]:
    """What the rows of a batch are called by the only column."""
    (column,) = columns(run)
    found = column.values(batch(run.features.sliced_ids(run.eval.slices), **given))
    assert found.shape == (5,) and found.dtype == np.int64
    return [column.label(value) for value in found[:3].tolist()]


@pytest.mark.parametrize(
    ("feature", "keys", "expected"),
    [
        ("tab", [0, None, 7], ["0", "missing", "7"]),
        ("word", [5, None, -1], ["5", "missing", "-1"]),
        # No key stands for a missing one.
        ("word", [0, LARGEST, -(2**63)], ["0", str(LARGEST), str(-(2**63))]),
        ("age", [0, 1, 3], ["< 7", "7 to < 15.5", "≥ 30"]),
        ("age", [None, 2, 2], ["missing", "15.5 to < 30", "15.5 to < 30"]),
    ],
)
def test_ids_are_called_by_their_keys(tmp_path, feature, keys, expected):
    for slices in (feature, f"hour,{feature}", f"{feature},user_known"):
        run = config(tmp_path, f"eval.slices=[{slices}]")
        sliced = [column for column in columns(run) if column.name == feature]
        found = sliced[0].values(batch((feature,), **{feature: keys}))
        assert found.shape == (5,) and found.dtype == np.int64
        assert [sliced[0].label(value) for value in found.tolist()] == [*expected, "missing", "missing"]


def test_each_feature_has_its_own_keys(tmp_path):
    run = config(tmp_path, "eval.slices=[word,hour,tab,word]")
    word, _, tab = columns(run)
    scored = batch(run.features.sliced_ids(run.eval.slices), word=[5, None, 0], tab=[None, 7, 0])
    assert [word.label(value) for value in word.values(scored)[:3]] == ["5", "missing", "0"]
    assert [tab.label(value) for value in tab.values(scored)[:3]] == ["missing", "7", "0"]


def test_users_are_known_by_their_rows_in_training(tmp_path):
    run = config(tmp_path, "eval.slices=[user_known]")
    assert run.features.slices_ask_training(run.eval.slices)
    assert labels(run, user_id=[11, 10, 99]) == ["known", "new", "new"]


def test_activity_is_cut_at_thirds_of_the_users(tmp_path):
    run = config(tmp_path, "eval.slices=[user_activity]")
    # Two of six users have up to 2 rows, which a third one has too; four have up to 5.
    assert labels(run, user_id=[10, 11, 12]) == ["none", "low", "low"]
    assert labels(run, user_id=[13, 14, 15]) == ["low", "middle", "high"]
    (column,) = columns(run, ("train", "more"))
    assert column.legend.startswith("the user's rows in train, more: low to 2, middle to 5, high above")


def test_the_clock_is_that_of_the_split(tmp_path):
    start = 1_767_369_600_000  # 2026-01-03T00:00:00+08:00
    times = [start, start + 25 * HOUR_MS, start + 24 * HOUR_MS - 1]
    assert labels(config(tmp_path, "eval.slices=[hour]"), timestamp=times) == ["00", "01", "23"]
    run = config(tmp_path, "eval.slices=[day]")
    assert not run.features.slices_ask_training(run.eval.slices)
    assert labels(run, timestamp=times) == ["2026-01-03", "2026-01-04", "2026-01-03"]
    assert columns(run)[0].legend == "day of the row's time, at UTC+0800"


BOUNDARIES = f"features.features.age.boundaries={[*range(1000)]}"
TABLE = "features.tables.age.rows=1002"
END = "data.splits.test.end=2028-09-29T00:00:01+08:00"
"""A thousand days and a second."""


@pytest.mark.parametrize(
    ("overrides", "told"),
    [
        (["eval.slices=[user]"], "eval.slices user: 2,000 values in the rows of test, at most 1,000 get"),
        (["eval.slices=[age]", BOUNDARIES, TABLE], "eval.slices age: 1,001 buckets, at most 1,000 get"),
        (["eval.slices=[day]", END], "eval.slices day: 1,001 days in test, at most 1,000 get"),
    ],
)
def test_a_column_with_too_many_values_is_refused(tmp_path, overrides, told):
    with pytest.raises(UserError, match=f"^{told}"):
        columns(config(tmp_path, *overrides))


def test_as_many_values_as_there_may_be_are_taken_beside_a_missing_one(tmp_path, monkeypatch):
    monkeypatch.setitem(KEYS, "user", np.arange(1000))
    fewer, shorter = BOUNDARIES.replace(", 999]", "]"), END.replace("00:00:01", "00:00:00")
    run = config(tmp_path, "eval.slices=[user,age,day]", fewer, TABLE, shorter)
    user, _, _ = columns(run)
    rows = batch(run.features.sliced_ids(run.eval.slices), user=[0, 999, None])
    assert [user.label(value) for value in user.values(rows)[:3].tolist()] == ["0", "999", "missing"]


@pytest.mark.parametrize(
    ("column", "told"),
    [
        (
            "tba",
            "eval.slices: 'tba' is no column to slice by; there are: user_known, user_activity, hour, day, age, tab, ",
        ),
        ("words", "eval.slices: words has several ids a row; name a column with one"),
        ("length", "eval.slices: length is a number; declare it as an id feature with `boundaries` too"),
    ],
)
def test_what_is_no_column_is_told(tmp_path, column, told):
    with pytest.raises(UserError, match=told) as error:
        config(tmp_path, f"eval.slices=[{column}]")
    assert "\n" not in str(error.value)


def test_a_user_is_known_from_the_splits_that_were_begun(tmp_path):
    in_turn = config(tmp_path, "train.split=[train,more]")
    assert [begun_splits(in_turn, epoch) for epoch in (0, 1)] == [("train",), ("train", "more")]
    again = config(tmp_path, "train.epochs=3")
    assert {begun_splits(again, epoch) for epoch in range(3)} == {("train",)}
