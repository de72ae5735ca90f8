"""The engine for scored rows against the state in memory: the same bits from any parts, in memory and from disk."""

import itertools
import tracemalloc
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from rankmixer_dist.errors import UserError
from rankmixer_dist.evaluation.counting import standings
from rankmixer_dist.evaluation.figures import SerialWorkers, figures_of
from rankmixer_dist.evaluation.sorting import Sorter, SpillRoom, slice_name
from rankmixer_dist.metrics import AUCCounts, TaskMetrics


def random_columns(seed: int, rows: int, *, weighted: bool = False, slices: int = 0) -> dict[str, np.ndarray]:
    """Zipf users; the seed decides dtype and how many scores tie; weights of many sizes, zeros among them."""
    rng = np.random.default_rng(seed)
    labels = rng.random(rows) < rng.choice([0.05, 0.4])
    logits = np.round(rng.normal(size=rows) + labels, int(rng.integers(0, 6)))
    scores = (1 / (1 + np.exp(-logits))).astype((np.float32, np.float64)[seed % 2])
    columns = {"scores": scores, "labels": labels, "user_ids": rng.zipf(1.5, rows) % 50 - 7}
    if weighted:
        whole = rng.random() < 0.5
        columns["weights"] = rng.integers(0, 4, rows).astype(float) if whole else rng.lognormal(sigma=2, size=rows)
    for index in range(slices):
        columns[slice_name(index)] = np.minimum(rng.geometric(0.4, rows), 4) - 3
    return columns


def evaluated(
    columns: Mapping[str, np.ndarray], room: SpillRoom, *, parts: int = 1, batch: int = 100
) -> dict[Any, Any]:
    """The figures of every group of the rows, which come to several sorters in small batches."""
    slices = sum(name.startswith("slice") for name in columns)
    sorters = [Sorter(["task"], room, num_slices=slices, weighted="weights" in columns) for _ in range(parts)]
    for number, start in enumerate(range(0, len(columns["scores"]), batch)):
        sorters[number % parts].add("task", {name: column[start : start + batch] for name, column in columns.items()})
    for sorter in sorters:
        sorter.finish()
    found = figures_of([sorter.rows for sorter in sorters], SerialWorkers(), room)
    return {group: {**own.figures, "rows": own.rows} for group, own in found["task"].items()}


def expected(columns: Mapping[str, np.ndarray], rows: np.ndarray | None = None) -> dict[str, Any]:
    """The figures of some rows by the state that keeps them in memory."""
    own = {n: column if rows is None else column[rows] for n, column in columns.items() if not n.startswith("slice")}
    state = TaskMetrics()
    state.update(**own)
    return {**state.compute(), "rows": state.rows}


@pytest.mark.parametrize("seed", range(60))
@pytest.mark.parametrize("weighted", [False, True])
def test_the_same_bits_as_in_memory(seed: int, weighted: bool, tmp_path: Path) -> None:
    rng = np.random.default_rng(seed)
    columns = random_columns(seed, rows=int(rng.integers(1, 2000)), weighted=weighted)
    memory_rows, batch, parts = int(rng.integers(30, 600)), int(rng.integers(50, 300)), int(rng.integers(1, 4))
    for folder in (tmp_path, None):
        room = SpillRoom(folder, memory_rows)
        assert evaluated(columns, room, parts=parts, batch=batch) == {None: expected(columns)}


@pytest.mark.parametrize("memory_rows", [50, 10**6])
def test_each_slice_has_the_figures_of_its_rows_alone(memory_rows: int, tmp_path: Path) -> None:
    columns = random_columns(3, rows=1500, slices=2)
    columns["scores"][columns[slice_name(0)] == -1] = 0.5  # more rows of one score than fit
    columns["user_ids"][700:] = 3  # and of one user
    for folder in (tmp_path, None):
        found = evaluated(columns, SpillRoom(folder, memory_rows), parts=3)
        assert found.pop(None) == expected(columns)
        for (index, value), figures in found.items():
            assert figures == expected(columns, columns[slice_name(index)] == value)
        assert set(found) == {(index, value) for index in (0, 1) for value in range(-2, 2)}


@pytest.mark.parametrize("scores", [np.full(500, 0.3), np.repeat([0.1, 0.2], 250), np.linspace(0, 1, 500)])
@pytest.mark.parametrize("memory_rows", [40, 499])
@pytest.mark.parametrize("weighted", [False, True])
def test_scores_and_users_with_more_rows_than_fit(
    scores: np.ndarray, memory_rows: int, weighted: bool, tmp_path: Path
) -> None:
    labels = np.arange(500) % 3 == 0
    for users in (np.zeros(500, np.int64), np.arange(500) // 499):
        columns = {"scores": scores, "labels": labels, "user_ids": users}
        if weighted:
            columns["weights"] = np.random.default_rng(memory_rows).lognormal(size=500)
        assert evaluated(columns, SpillRoom(tmp_path, memory_rows)) == {None: expected(columns)}
    assert {path.name.split("-")[0] for path in tmp_path.iterdir()} == {"run"}


@pytest.mark.parametrize("labels", [np.ones(50, bool), np.zeros(50, bool)])
def test_a_large_user_of_one_class_is_not_scored(labels: np.ndarray, tmp_path: Path) -> None:
    columns = {"scores": np.linspace(0, 1, 50), "labels": labels, "user_ids": np.zeros(50, np.int64)}
    assert evaluated(columns, SpillRoom(tmp_path, 10))[None]["users_scored"] == 0


def test_no_rows() -> None:
    assert evaluated(random_columns(1, rows=0), SpillRoom(None, 10)) == {None: expected(random_columns(1, rows=0))}


def test_some_rows_with_weights_and_some_without_are_refused() -> None:
    columns = random_columns(6, rows=10, weighted=True)
    sorter = Sorter(["task"], SpillRoom(None, 150))
    with pytest.raises(ValueError, match="rows with weights; all have them, or none"):
        sorter.add("task", columns)
    del columns["weights"]
    with pytest.raises(ValueError, match="rows without weights; all have them, or none"):
        Sorter(["task"], SpillRoom(None, 150), weighted=True).add("task", columns)


@pytest.mark.parametrize("rows", [5, 1500])
def test_a_sum_of_weights_that_cannot_be_counted_is_told(rows: int) -> None:
    columns = random_columns(6, rows=rows) | {"weights": np.full(rows, 2.0**20)}
    assert evaluated(columns, SpillRoom(None, 1000)) == {None: expected(columns)}
    total = AUCCounts.of_one_score(np.ones(1, bool), np.array([2**60]))
    with pytest.raises(UserError, match=r"^weights: their sum is 2\*\*31 or more; divide all weights by one number$"):
        standings([{None: total}, {None: total}])


SCORED = st.lists(st.tuples(st.integers(0, 6), st.booleans()), min_size=1, max_size=25)


@given(SCORED, st.lists(st.integers(0, 7), max_size=4))
def test_counts_of_ranges_add_up(rows: list[tuple[int, bool]], cuts: list[int]) -> None:
    keys, labels = np.array([key for key, _ in rows]), np.array([label for _, label in rows])
    edges = [0, *sorted(cuts), 7]
    for units in (None, np.arange(len(keys)) * 2**30 + 1):
        total = tied = AUCCounts()
        for low, high in itertools.pairwise(edges):
            own = (keys >= low) & (keys < high)
            own_units = None if units is None else units[own]
            total = total.followed_by(AUCCounts.of_rows(keys[own], labels[own], own_units))
            tied = tied.plus(AUCCounts.of_one_score(labels[own], own_units))
        assert total == AUCCounts.of_rows(keys, labels, units)
        assert tied.tied() == AUCCounts.of_rows(np.zeros(len(keys), np.uint64), labels, units)


def test_memory_does_not_grow_with_the_rows(tmp_path: Path) -> None:
    def peak_bytes(rows: int) -> int:
        columns = random_columns(8, 5000)
        room = SpillRoom(tmp_path, memory_rows=20_000)
        sorter = Sorter(["task"], room)
        tracemalloc.start()
        for _ in range(rows // 5000):
            sorter.add("task", columns)
        sorter.finish()
        figures_of([sorter.rows], SerialWorkers(), room)
        peak = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        return peak

    peak_bytes(5000)
    # The state in memory would need five times as much.
    assert peak_bytes(300_000) < 1.3 * peak_bytes(60_000)


def test_a_folder_that_cannot_be_written_is_named(tmp_path: Path) -> None:
    blocked = tmp_path / "file"
    blocked.write_text("")
    with pytest.raises(UserError, match=r"^cannot spill rows to .*file, free some space or name another folder: "):
        evaluated(random_columns(12, rows=100), SpillRoom(blocked, 10))


def test_refused_rows() -> None:
    columns = random_columns(13, rows=2) | {"scores": np.array([0, np.inf])}
    with pytest.raises(ValueError, match=r"^scores: 1 of 2 values are not finite, first at index 1 \(inf\)$"):
        evaluated(columns, SpillRoom(None, 10))
