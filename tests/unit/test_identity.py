"""When rows are the same stream, in which a run can go on where it stopped."""

import pytest

from rankmixer_dist.identity import SplitRows, Stream


def stream(*, made_from="a", cut="c", content="x", rows=10, **changes):
    """A stream of one split."""
    splits = {"train": SplitRows(rows=rows, cut=cut, content=content)}
    values = {"made_from": made_from, "splits": splits, "row_group_rows": 4, "shuffle": "none", "seed": 1}
    return Stream(**values | changes)


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({}, None),
        ({"made_from": "b"}, None),
        ({"content": "y"}, None),  # columns in another order
        ({"made_from": "b", "content": "y"}, "split train holds other rows"),
        ({"cut": "d", "content": "y"}, "split train holds other rows, or has them in shards of other sizes"),
        ({"rows": 11, "content": "y"}, "split train had 10 rows and has 11"),
        ({"row_group_rows": 8, "content": "y"}, "row_group_rows was 4 and is 8"),
        ({"seed": 2}, "seed was 1 and is 2"),
        ({"interleave": 8, "batch_size": 64}, "interleave was 1 and is 8"),
        ({"batch_size": 64}, "batch_size was 0 and is 64"),
        ({"splits": {}}, "split train is not trained on"),
    ],
)
def test_another_stream_is_told_by_what_makes_it_one(changes, told):
    assert stream().difference(stream(**changes)) == told


def test_rows_of_which_nobody_knows_what_they_are_made_from_must_be_the_same_bytes():
    assert stream(made_from="").difference(stream(made_from="")) is None
    assert stream(made_from="").difference(stream(made_from="", content="y")) == "split train holds other rows"
