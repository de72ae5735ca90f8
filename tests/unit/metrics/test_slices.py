"""SlicedMetrics against TaskMetrics over the rows of each slice alone."""

import json

import numpy as np
import pytest

from rankmixer_dist.errors import UserError
from rankmixer_dist.metrics import SlicedMetrics, TaskMetrics

TABS = np.array(["follow", "near", "new", "search"])


def random_columns(seed: int, rows: int = 1500) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(seed)
    scores = rng.random(rows, dtype=np.float32)
    return {
        "slices": np.minimum(rng.geometric(0.4, rows), 4) - 1,
        "scores": scores,
        "labels": rng.random(rows) < scores,
        "user_ids": rng.integers(0, 80, rows),
    }


def computed(columns: dict[str, np.ndarray]) -> SlicedMetrics:
    state = SlicedMetrics()
    state.update(**columns)
    return state


@pytest.mark.parametrize("names", [np.arange(4), TABS, np.array([False, True, True, False])])
@pytest.mark.parametrize("weighted", [False, True])
def test_each_slice_has_the_figures_of_its_rows_alone(names: np.ndarray, weighted: bool) -> None:
    columns = random_columns(0)
    columns["slices"] = names[columns["slices"]]
    if weighted:
        columns["weights"] = np.random.default_rng(1).exponential(size=1500)
    figures = computed(columns).compute()
    slices = columns.pop("slices")
    assert list(figures) == np.unique(slices).tolist()
    for value, found in figures.items():
        alone = TaskMetrics()
        alone.update(**{name: column[slices == value] for name, column in columns.items()})
        assert found == {**alone.compute(), "rows": int((slices == value).sum())}
    json.dumps({str(value): found for value, found in figures.items()}, allow_nan=False)


@pytest.mark.parametrize("weighted", [False, True])
def test_bit_identical_for_any_partition_and_merge_order(weighted: bool, partitions) -> None:
    columns = random_columns(2)
    columns["slices"] = TABS[columns["slices"]]
    if weighted:
        columns["weights"] = np.random.default_rng(3).exponential(size=1500)
    whole = computed(columns).compute()
    for state in partitions(SlicedMetrics, columns):
        assert state.compute() == whole


def test_slices_with_and_without_weights_are_saved_as_they_are(tmp_path) -> None:
    columns = random_columns(4)
    state = computed(columns)
    only_one = {name: column[columns["slices"] == 2] for name, column in columns.items()}
    state.update(**only_one, weights=np.linspace(0, 3, len(only_one["slices"])))
    state.save(tmp_path / "state")
    loaded = SlicedMetrics.load(tmp_path / "state")
    assert loaded.compute() == state.compute()
    assert loaded.to_arrays()["weighted"].tolist() == [False, False, True, False]


def test_an_empty_state_is_saved_and_takes_any_type_later(tmp_path) -> None:
    SlicedMetrics().save(tmp_path / "state")
    loaded = SlicedMetrics.load(tmp_path / "state")
    assert loaded.compute() == {}
    columns = random_columns(5)
    columns["slices"] = TABS[columns["slices"]]
    loaded.merge(computed(columns))
    assert loaded.compute() == computed(columns).compute()


def test_refused_slices() -> None:
    columns = random_columns(6)
    state = computed(columns)
    before = state.compute()
    for slices, message in (
        (
            columns["scores"],
            r"^slices: expected a column of integers, booleans or strings, got float32, 1-dimensional$",
        ),
        (TABS[columns["slices"]], r"^slices: strings after integers; give one column, of one type$"),
        (columns["slices"] > 1, r"^slices: booleans after integers; give one column, of one type$"),
        (np.arange(1500), r"^slices: more than 1,000 values; put the column into buckets first$"),
    ):
        with pytest.raises(UserError, match=message):
            state.update(**columns | {"slices": slices})
    with pytest.raises(UserError, match="strings after integers"):
        state.merge(computed(columns | {"slices": TABS[columns["slices"]]}))
    with pytest.raises(ValueError, match=r"^columns differ in length: slices 3, scores 1500"):
        state.update(**columns | {"slices": np.arange(3)})
    with pytest.raises(ValueError, match=r"^scores: 1 of 1500 values are outside"):
        state.update(**columns | {"scores": np.append(columns["scores"][1:], np.float32(2))})
    assert state.compute() == before
