"""The order of rows: each once, the same for all ranks, from any position, and few row groups decoded twice."""

from itertools import chain, pairwise

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from data_pipeline.row_order import RowOrder, files_at_once, told_of_shared

SIZES = st.lists(st.integers(1, 30), min_size=1, max_size=25)
"""Row groups of unequal sizes, as no preparation of ours would write them."""


@st.composite
def orders(draw):
    sizes = np.array(draw(SIZES))
    options = {
        "shuffle": draw(st.sampled_from(["chunks", "none"])),
        "seed": draw(st.integers(0, 3)),
        "epoch": draw(st.integers(0, 2)),
        "batch_size": draw(st.integers(1, 60)),
        "lanes": draw(st.integers(1, 70)),
    }
    return sizes, options, ordered(sizes, **options)


def ordered(sizes, *, files=3, **options):
    """Of row groups that lie in files of so many, and a shorter one."""
    return RowOrder.of(sizes, np.arange(len(sizes)) // files, **options)


def rows_of(found, sizes):
    """Each row as its number in the order of time."""
    first_of = np.concatenate([[0], np.cumsum(sizes)])
    return [int(first_of[chunk]) + first + row for chunk, first, rows in found for row in range(rows)]


def pieces(order, slices):
    return order.pieces(*np.array(slices, np.int64).reshape(-1, 2).T)


def stream(order, sizes):
    rows = int(sizes.sum())
    return rows_of(
        pieces(order, [(at, min(at + order.batch_size, rows)) for at in range(0, rows, order.batch_size)]), sizes
    )


def dealt(line, batch_size, lanes, window):
    """The docstring's words as loops: windows of whole batches, each cut into lanes, a stripe of each in turn."""
    lanes = min(lanes, batch_size)
    found, whole = [], len(line) // batch_size
    for opens in range(0, whole, window):
        batches = min(window, whole - opens)
        rows = line[opens * batch_size : (opens + batches) * batch_size]
        cuts = [lane * batch_size // lanes for lane in range(lanes + 1)]
        parts = [rows[batches * left : batches * right] for left, right in pairwise(cuts)]
        for batch in range(batches):
            for part in parts:
                width = len(part) // batches
                found += part[batch * width : (batch + 1) * width]
    return found + line[whole * batch_size :]


@given(orders())
def test_every_row_comes_once_as_the_words_say(case):
    sizes, options, order = case
    found = stream(order, sizes)
    assert sorted(found) == list(range(sizes.sum()))
    chunks, first_of = order.chunks, np.concatenate([[0], np.cumsum(sizes)])
    assert sorted(chunks) == list(range(len(sizes)))
    line = [row for chunk in chunks for row in range(first_of[chunk], first_of[chunk + 1])]
    assert found == dealt(line, options["batch_size"], options["lanes"], order.window)


@given(orders(), st.data())
def test_any_slices_are_those_of_the_whole_stream(case, data):
    sizes, _, order = case
    whole, batch_size = stream(order, sizes), order.batch_size
    slices = []
    for start in data.draw(st.lists(st.integers(0, len(whole)), max_size=5)):
        most = min(len(whole), start - start % batch_size + batch_size)
        slices.append((start, data.draw(st.integers(max(0, start - 2), most))))
    wanted = [row for start, stop in slices for row in whole[start:stop]]
    assert rows_of(pieces(order, slices), sizes) == wanted


@given(orders(), st.integers(1, 6))
def test_the_stream_of_a_number_of_ranks_is_that_of_one(case, ranks):
    sizes, options, _ = case
    options |= {"batch_size": options["batch_size"] * ranks}
    order = ordered(sizes, **options)
    share = options["batch_size"] // ranks
    slices = [
        [(start, min(start + share, int(sizes.sum()))) for start in range(rank * share, sizes.sum(), share * ranks)]
        for rank in range(ranks)
    ]
    shares = [[rows_of(pieces(order, [step]), sizes) for step in steps] for steps in slices]
    assert [rows_of(pieces(order, steps), sizes) for steps in slices] == [[*chain(*steps)] for steps in shares]
    together = [row for step in range(len(shares[0])) for steps in shares if step < len(steps) for row in steps[step]]
    assert together == stream(order, sizes)


@pytest.mark.parametrize("shuffle", ["chunks", "none"])
@pytest.mark.parametrize(("ranks", "lanes", "most"), [(8, 8, 1.01), (8, 64, 1.03), (64, 64, 1.03), (6, 64, 1.34)])
def test_ranks_decode_row_groups_of_their_own(shuffle, ranks, lanes, most):
    sizes = np.array([1024] * 2000 + [17])
    batch_size = 2048 - 2048 % ranks
    order = ordered(sizes, shuffle=shuffle, seed=1, epoch=0, batch_size=batch_size, lanes=lanes)
    share = batch_size // ranks
    decoded = 0
    for rank in range(ranks):
        kept: set[int] = set()
        for start in range(rank * share, sizes.sum() - sizes.sum() % batch_size, batch_size):
            asked = {chunk for chunk, _, _ in pieces(order, [(start, start + share)])}
            decoded += len(asked - kept)
            kept = asked
    assert decoded / len(sizes) < most


@pytest.mark.parametrize(("lanes", "together"), [(64, 1), (100, 1), (16, 4), (2, 32)])
def test_a_lane_reads_a_few_files_whole_before_others(lanes, together):
    sizes = np.array([1024] * 640)
    order = ordered(sizes, files=10, shuffle="chunks", seed=1, epoch=0, batch_size=2048, lanes=lanes)
    files = (order.chunks // 10).reshape(-1, 10 * together).tolist()
    assert {len(set(group)) for group in files} == {together}
    if together > 1:
        assert files[0] != sorted(files[0])


def test_without_lanes_the_order_is_that_of_all_row_groups():
    sizes = np.array([16] * 200)
    order = ordered(sizes, shuffle="chunks", seed=7, epoch=3, batch_size=32, lanes=1)
    random = np.random.Generator(np.random.Philox(np.random.SeedSequence([7, 3])))
    np.testing.assert_array_equal(order.chunks, random.permutation(200))


def test_lanes_keep_the_order_of_time_from_window_to_window():
    sizes = np.array([16] * 100)
    found = stream(ordered(sizes, shuffle="none", seed=1, epoch=0, batch_size=32, lanes=8), sizes)
    window = 4 * 8 * 16
    for start in range(0, 1600, window):
        assert sorted(found[start : start + window]) == list(range(start, min(start + window, 1600)))
    assert found[:32] == [64 * lane + row for lane in range(8) for row in range(4)]


def test_who_shares_row_groups_is_told_what_mends_it():
    batches = {"batch_size": 2048, "row_group_rows": 1024}
    told = told_of_shared(lanes=1, ranks=64, **batches)
    assert told == (
        "each row group is decoded by about 32 of 64 ranks; in a run of another `name`, loader.interleave=64 lets each "
        "decode its own"
    )
    assert "32 of 64" in told_of_shared(lanes=2, ranks=64, **batches)
    for lanes, ranks, rows in ((64, 64, 1024), (32, 64, 1024), (1, 2, 1024), (1, 64, 32), (1, 1, 4096)):
        assert told_of_shared(lanes=lanes, ranks=ranks, batch_size=2048, row_group_rows=rows) is None


@pytest.mark.parametrize(
    ("lanes", "ranks", "files"),
    [(1, 1, 64), (1, 64, 64), (1, 1000, 64), (2, 1, 65), (2, 64, 2), (64, 8, 9), (100, 1, 101), (128, 64, 3)],
)
def test_a_rank_keeps_the_files_open_that_its_lanes_are_in(lanes, ranks, files):
    assert files_at_once(lanes=lanes, ranks=ranks) == files
