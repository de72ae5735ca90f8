"""SpilledAUC and SpilledUserAUC against the states in memory: the same bits from rows on disk, in bounded memory."""

import dataclasses
import gc
import itertools
import math
import tracemalloc
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from rankmixer_dist.errors import UserError
from rankmixer_dist.metrics import AUC, AUCCounts, SpilledAUC, SpilledUserAUC, UserAUC


def random_columns(seed: int, rows: int) -> dict[str, np.ndarray]:
    """Zipf users; the seed decides dtype and how many scores tie."""
    rng = np.random.default_rng(seed)
    labels = rng.random(rows) < rng.choice([0.05, 0.4])
    scores = np.round(rng.normal(size=rows) + labels, int(rng.integers(0, 6)))
    user_ids = rng.zipf(1.5, rows) % 50 - 7
    return {"scores": scores.astype((np.float32, np.float64)[seed % 2]), "labels": labels, "user_ids": user_ids}


def random_weights(rng: np.random.Generator, rows: int) -> np.ndarray:
    """Of many orders of magnitude, or whole numbers, zeros among them."""
    if rng.random() < 0.5:
        return rng.integers(0, 4, rows).astype(np.float64)
    return np.minimum(rng.lognormal(sigma=rng.choice([1, 8]), size=rows), 2.0**40)


def fed(state: Any, columns: dict[str, np.ndarray], batch: int = 100) -> Any:
    """The state after all rows, batch by batch; AUC states are given no users."""
    names = [name for name in columns if name != "user_ids" or not isinstance(state, AUC | SpilledAUC)]
    for start in range(0, len(columns["scores"]), batch):
        state.update(**{name: columns[name][start : start + batch] for name in names})
    return state


def assert_same(found: Any, expected: Any) -> None:
    """Equal to the last bit, every figure; NaN equals NaN."""
    np.testing.assert_array_equal(dataclasses.astuple(found), dataclasses.astuple(expected))


@pytest.mark.parametrize("seed", range(60))
@pytest.mark.parametrize("weighted", [False, True])
def test_the_same_bits_as_in_memory(seed: int, weighted: bool, tmp_path: Path) -> None:
    rng = np.random.default_rng(seed)
    columns = random_columns(seed, rows=int(rng.integers(1, 2000)))
    if weighted:
        columns["weights"] = random_weights(rng, len(columns["scores"]))
    memory_rows, batch = int(rng.integers(30, 600)), int(rng.integers(50, 300))
    assert_same(fed(SpilledAUC(tmp_path, memory_rows), columns, batch).compute(), fed(AUC(), columns).compute())
    assert_same(fed(SpilledUserAUC(tmp_path, memory_rows), columns, batch).compute(), fed(UserAUC(), columns).compute())


@pytest.mark.parametrize("scores", [np.full(500, 0.3), np.repeat([0.1, 0.2], 250), np.linspace(-1, 1, 500)])
@pytest.mark.parametrize("memory_rows", [40, 499])
@pytest.mark.parametrize("weighted", [False, True])
def test_scores_and_users_with_more_rows_than_fit(
    scores: np.ndarray, memory_rows: int, weighted: bool, tmp_path: Path
) -> None:
    labels = np.arange(500) % 3 == 0
    for users in (np.zeros(500, np.int64), np.arange(500) // 499):
        columns = {"scores": scores, "labels": labels, "user_ids": users}
        if weighted:
            columns["weights"] = random_weights(np.random.default_rng(memory_rows), 500)
        assert_same(fed(SpilledAUC(tmp_path, memory_rows), columns).compute(), fed(AUC(), columns).compute())
        assert_same(fed(SpilledUserAUC(tmp_path, memory_rows), columns).compute(), fed(UserAUC(), columns).compute())


def test_a_large_user_of_one_class_is_not_scored(tmp_path: Path) -> None:
    columns = {"scores": np.linspace(0, 1, 50), "labels": np.ones(50), "user_ids": np.zeros(50, np.int64)}
    assert fed(SpilledUserAUC(tmp_path, 10), columns).compute().users_scored == 0


@pytest.mark.parametrize("weighted", [False, True])
@pytest.mark.parametrize("memory_rows", [200, 10**6])
def test_auc_bit_identical_for_any_partition_and_merge_order(
    memory_rows: int, weighted: bool, tmp_path: Path, partitions
) -> None:
    columns = random_columns(3, rows=2000)
    del columns["user_ids"]
    if weighted:
        columns["weights"] = np.random.default_rng(5).exponential(size=2000)
    whole = fed(AUC(), columns).compute()
    folder = tmp_path / "rows"
    for state in partitions(
        lambda: SpilledAUC(folder, memory_rows), columns, lambda path: SpilledAUC.load(path, folder, memory_rows)
    ):
        assert state.compute() == whole


@pytest.mark.parametrize("weighted", [False, True])
@pytest.mark.parametrize("memory_rows", [200, 10**6])
def test_uauc_bit_identical_for_any_partition_and_merge_order(
    memory_rows: int, weighted: bool, tmp_path: Path, partitions
) -> None:
    columns = random_columns(4, rows=2000)
    if weighted:
        columns["weights"] = np.random.default_rng(5).exponential(size=2000)
    whole = fed(UserAUC(), columns).compute()
    folder = tmp_path / "rows"
    for state in partitions(
        lambda: SpilledUserAUC(folder, memory_rows),
        columns,
        lambda path: SpilledUserAUC.load(path, folder, memory_rows),
    ):
        assert state.compute() == whole


def test_weights_that_come_late_or_in_one_part_only(tmp_path: Path) -> None:
    columns = random_columns(6, rows=1000)
    weights = np.random.default_rng(6).integers(0, 3, 1000).astype(np.float64)
    weights[:500] = 1
    for spilled, in_memory in ((SpilledUserAUC, UserAUC), (SpilledAUC, AUC)):
        expected = fed(in_memory(), columns | {"weights": weights}).compute()
        state = fed(spilled(tmp_path, 150), {name: column[:500] for name, column in columns.items()})
        fed(state, {name: column[500:] for name, column in (columns | {"weights": weights}).items()})
        assert_same(state.compute(), expected)


SCORED = st.lists(st.tuples(st.integers(0, 6), st.booleans()), min_size=1, max_size=25)


@given(SCORED, st.lists(st.integers(0, 7), max_size=4))
def test_counts_of_ranges_add_up(rows: list[tuple[int, bool]], cuts: list[int]) -> None:
    keys, labels = np.array([key for key, _ in rows]), np.array([label for _, label in rows])
    edges = [0, *sorted(cuts), 7]
    total = AUCCounts.of_ties(0, 0)
    for low, high in itertools.pairwise(edges):
        own = (keys >= low) & (keys < high)
        total = total.followed_by(AUCCounts.of_rows(keys[own], labels[own]))
    assert total == AUCCounts.of_rows(keys, labels)
    tied = AUCCounts.of_ties(int(labels.sum()), int((~labels).sum()))
    assert tied == AUCCounts.of_rows(np.zeros(len(keys)), labels)


@pytest.mark.parametrize("make", [SpilledAUC, SpilledUserAUC])
def test_memory_does_not_grow_with_the_rows(make: Callable[..., Any], tmp_path: Path) -> None:
    def peak_bytes(rows: int) -> int:
        columns = random_columns(8, 5000)
        state = make(tmp_path, memory_rows=20_000)
        tracemalloc.start()
        for _ in range(rows // 5000):
            fed(state, columns, batch=5000)
        state.compute()
        peak = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        return peak

    peak_bytes(5000)
    # The states in memory would need five times as much.
    # Seen: 1.04 times.
    assert peak_bytes(300_000) < 1.3 * peak_bytes(60_000)


def test_what_was_spilled_goes_with_the_last_state_that_needs_it(tmp_path: Path) -> None:
    columns = random_columns(9, rows=1000)
    first, second = (fed(SpilledUserAUC(tmp_path, 100), columns) for _ in range(2))
    first.merge(second)
    expected = first.compute()
    del second
    gc.collect()
    assert first.compute() == expected
    assert list(tmp_path.iterdir())
    del first
    gc.collect()
    assert not list(tmp_path.iterdir())


def test_a_saved_state_stands_alone_and_is_not_written_over(tmp_path: Path) -> None:
    columns = random_columns(10, rows=1000)
    state = fed(SpilledUserAUC(tmp_path / "rows", 100), columns)
    expected = state.compute()
    state.save(tmp_path / "saved")
    with pytest.raises(UserError, match=r"saved is there already: remove it or save elsewhere$"):
        state.save(tmp_path / "saved")
    del state
    gc.collect()
    loaded = SpilledUserAUC.load(tmp_path / "saved", tmp_path / "rows", 100)
    assert loaded.compute() == expected
    fed(loaded, columns)
    assert SpilledUserAUC.load(tmp_path / "saved", tmp_path / "rows").compute() == expected
    assert [path.name for path in tmp_path.iterdir() if "partial" in path.name] == []


def test_damaged_or_wrong_saved_states_are_refused_in_one_line(tmp_path: Path) -> None:
    fed(SpilledUserAUC(tmp_path / "rows", 100), random_columns(11, rows=500)).save(tmp_path / "saved")
    with pytest.raises(
        UserError, match=r"saved holds SpilledUserAUC, not SpilledAUC: name the folder of such a state$"
    ):
        SpilledAUC.load(tmp_path / "saved", tmp_path)
    with pytest.raises(UserError, match=r"^cannot read .*nothing as SpilledUserAUC, save it again: .*No such file"):
        SpilledUserAUC.load(tmp_path / "nothing", tmp_path)
    column = tmp_path / "saved" / "000001" / "scores.npy"
    content = column.read_bytes()
    # The runs in memory share the file: a new one in its place.
    column.unlink()
    for damage in (content[:-4], content[:50], b"", b"\x80" + content[1:]):
        column.write_bytes(damage)
        with pytest.raises(UserError, match="save it again"):
            SpilledUserAUC.load(tmp_path / "saved", tmp_path)
    column.write_bytes(content)
    (tmp_path / "saved" / "000002" / "keys.npy").unlink()
    with pytest.raises(UserError, match="save it again"):
        SpilledUserAUC.load(tmp_path / "saved", tmp_path)


def test_a_folder_that_cannot_be_written_is_named(tmp_path: Path) -> None:
    blocked = tmp_path / "file"
    blocked.write_text("")
    with pytest.raises(UserError, match=r"^cannot spill rows to .*file, free some space or name another folder: "):
        fed(SpilledAUC(blocked, 10), random_columns(12, rows=100))


@pytest.mark.parametrize("make", [SpilledAUC, SpilledUserAUC])
def test_refused_rows(make: type, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"^scores: 1 of 2 values are not finite, first at index 1 \(inf\)$"):
        fed(make(tmp_path), {"scores": np.array([0, math.inf]), "labels": np.ones(2), "user_ids": np.arange(2)})
