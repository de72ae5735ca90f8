"""Predictions on disk: the bits of the state in memory, however the rows are cut, and nothing left behind."""

import os
import resource
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from data_pipeline.job import RayJob, SerialJob
from data_pipeline.predictions import ColumnNames, evaluate_predictions, find_predictions
from data_pipeline.predictions.stages import read_units
from rankmixer_dist.errors import UserError
from rankmixer_dist.evaluation.sorting import SpillRoom
from rankmixer_dist.metrics import TaskMetrics
from tests.pipeline.killing_job import KillingJob

USER, WEIGHT = "user_id", "weight"


def random_rows(seed: int, rows: int, tasks: tuple[str, ...] = ("click",)) -> dict[str, np.ndarray]:
    """Columns of a run's predictions: Zipf users, ties, unknown labels, and weights of many sizes."""
    rng = np.random.default_rng(seed)
    columns: dict[str, np.ndarray] = {
        USER: rng.zipf(1.3, rows) % 97 - 40,
        WEIGHT: np.maximum(rng.lognormal(sigma=3, size=rows), 1e-6),
    }
    columns[WEIGHT][rng.random(rows) < 0.1] = 0
    for task in tasks:
        labels = (rng.random(rows) < rng.choice([0.05, 0.4])).astype(np.float32)
        logits = np.round(rng.normal(size=rows) + labels, int(rng.integers(0, 5)))
        labels[rng.random(rows) < 0.1] = np.nan
        kind = (np.float32, np.float64)[seed % 2]
        columns |= {f"label_{task}": labels, f"score_{task}": (1 / (1 + np.exp(-logits))).astype(kind)}
    return columns


def write(folder: Path, columns: dict[str, Any], *, files: int = 3, row_group: int = 70) -> Path:
    """The rows as a folder of files, the last one in a folder below."""
    table = pa.table(columns)
    for number, rows in enumerate(np.array_split(np.arange(table.num_rows), files)):
        path = folder / ("more/" if number == files - 1 else "") / f"part-{number}.parquet"
        path.parent.mkdir(parents=True, exist_ok=True)
        pq.write_table(table.take(rows), path, row_group_size=row_group)
    return folder


def in_memory(columns: dict[str, np.ndarray], task: str, *, weighted: bool) -> dict[str, Any]:
    """The task's figures by the state that keeps its rows, and how many there are."""
    labels = columns[f"label_{task}"]
    known = ~np.isnan(labels)
    state = TaskMetrics()
    weights = columns[WEIGHT][known] if weighted else None
    state.update(columns[f"score_{task}"][known], labels[known], columns[USER][known], weights)
    return {**state.compute(), "rows": int(known.sum()), "without_label": int((~known).sum())}


def evaluated(path: Path, spill: Path, *, job: Any = None, memory_rows: int = 10**6, **names: str) -> dict[str, Any]:
    """The figures by task; what was spilled is gone."""
    spill.mkdir(exist_ok=True)
    found = evaluate_predictions(
        find_predictions(path, ColumnNames(**names)),
        memory_rows=memory_rows,
        spill=spill,
        job=job or SerialJob(),
        progress=False,
    )
    assert not list(spill.iterdir())
    return found["tasks"]


@pytest.mark.parametrize("seed", range(20))
@pytest.mark.parametrize("weighted", [False, True])
def test_the_bits_of_the_state_in_memory(seed: int, weighted: bool, tmp_path: Path) -> None:
    rng = np.random.default_rng(seed)
    columns = random_rows(seed, rows=int(rng.integers(5, 900)))
    write(tmp_path / "p", columns, files=int(rng.integers(1, 4)), row_group=int(rng.integers(1, 400)))
    names = {"weight": WEIGHT} if weighted else {}
    found = evaluated(tmp_path / "p", tmp_path / "spill", memory_rows=int(rng.integers(20, 400)), **names)
    assert found == {"click": in_memory(columns, "click", weighted=weighted)}


@pytest.mark.ray
@pytest.mark.parametrize(("rows_per_task", "memory_rows"), [(150, 150), (10**6, 400), (None, 10**6)])
def test_ray_finds_them_for_every_task(rows_per_task: int | None, memory_rows: int, tmp_path: Path) -> None:
    columns = random_rows(1, rows=3000, tasks=("click", "like"))
    write(tmp_path / "p", columns)
    for weighted in (False, True):
        names = {"weight": WEIGHT} if weighted else {}
        job = RayJob(rows_per_task=rows_per_task)
        found = evaluated(tmp_path / "p", tmp_path / "spill", job=job, memory_rows=memory_rows, **names)
        assert found == {task: in_memory(columns, task, weighted=weighted) for task in ("click", "like")}


@pytest.mark.ray
def test_workers_that_are_killed_change_no_bit(tmp_path: Path) -> None:
    columns = random_rows(2, rows=2000)
    write(tmp_path / "p", columns)
    (tmp_path / "killed").mkdir()
    found = evaluated(
        tmp_path / "p", tmp_path / "spill", job=KillingJob(tmp_path / "killed", rows_per_task=300), memory_rows=300
    )
    assert {path.name for path in (tmp_path / "killed").iterdir()} == {
        "read_units",
        "find_ranges",
        "count",
        "take_precision",
    }
    assert found == {"click": in_memory(columns, "click", weighted=False)}


@pytest.mark.parametrize("weighted", [False, True])
def test_a_row_group_a_user_and_a_score_with_more_rows_than_fit(weighted: bool, tmp_path: Path) -> None:
    columns = random_rows(3, rows=1000)
    columns[USER][:700] = 5
    columns["score_click"][100:] = np.float64(0.25)
    write(tmp_path / "p", columns, files=1, row_group=1000)
    names = {"weight": WEIGHT} if weighted else {}
    found = evaluated(tmp_path / "p", tmp_path / "spill", memory_rows=90, **names)
    assert found == {"click": in_memory(columns, "click", weighted=weighted)}


def test_weights_of_all_sizes(tmp_path: Path) -> None:
    columns = random_rows(11, rows=300)
    columns[WEIGHT] = np.where(columns["score_click"] > 0.5, 2.0**-30, 2.0**20)
    for number, tied in enumerate((False, True)):
        if tied:  # more rows of one score than fit
            columns["score_click"][:] = np.maximum(columns["score_click"], 0.5)
        path = write(tmp_path / f"p{number}", columns)
        found = evaluated(path, tmp_path / "spill", memory_rows=50, weight=WEIGHT)
        assert found == {"click": in_memory(columns, "click", weighted=True)}
        assert 0 < found["click"]["pr_auc"] < 1


def test_rows_of_which_no_label_is_known_or_one_class(tmp_path: Path) -> None:
    columns = random_rows(8, rows=200, tasks=("none", "never"))
    columns["label_none"][:] = np.nan
    columns["label_never"][:] = 0
    write(tmp_path / "p", columns)
    for names in ({}, {"weight": WEIGHT}):
        found = evaluated(tmp_path / "p", tmp_path / "spill", memory_rows=50, **names)
        assert found == {task: in_memory(columns, task, weighted=bool(names)) for task in ("none", "never")}


@pytest.mark.parametrize(
    "users_as",
    [
        lambda ids: pa.array([f"user {user}" for user in ids]),
        lambda ids: pa.array([f"user {user}" for user in ids], pa.large_string()),
        lambda ids: pa.array([f"user {user}" for user in ids]).dictionary_encode(),
        lambda ids: pa.array([b"\xff%d" % user for user in ids]),
        lambda ids: pa.array([b"\xff%d" % user for user in ids], pa.large_binary()),
        lambda ids: pa.array([b"\xff%d" % user for user in ids]).dictionary_encode(),
        lambda ids: pa.array(ids.astype(np.uint64) << np.uint64(1)),
        lambda ids: pa.array(ids, pa.int8()),
    ],
    ids=["string", "large_string", "dictionary", "binary", "large_binary", "bytes_dictionary", "uint64", "int8"],
)
def test_users_of_every_kind(users_as: Any, tmp_path: Path) -> None:
    columns = random_rows(4, rows=500)
    write(tmp_path / "p", columns | {USER: users_as(columns[USER])})
    found = evaluated(tmp_path / "p", tmp_path / "spill", memory_rows=100)
    assert found == {"click": in_memory(columns, "click", weighted=False)}


def test_a_single_file_with_names_of_its_own_and_whole_numbers_for_labels(tmp_path: Path) -> None:
    columns = random_rows(5, rows=300)
    columns["label_click"] = np.nan_to_num(columns["label_click"])
    table = {"uid": columns[USER], "clicked": columns["label_click"].astype(np.int16), "p": columns["score_click"]}
    table["score_other"] = np.full(300, np.nan)
    pq.write_table(pa.table(table), tmp_path / "scored")
    found = evaluated(tmp_path / "scored", tmp_path / "spill", user="uid", label="clicked", score="p")
    assert found == {"clicked": in_memory(columns, "click", weighted=False)}


def test_a_folder_of_folders_that_are_named_as_files(tmp_path: Path) -> None:
    columns = random_rows(6, rows=300)
    write(tmp_path / "p" / "day=1.parquet", columns)
    assert evaluated(tmp_path / "p", tmp_path / "spill") == {"click": in_memory(columns, "click", weighted=False)}


def test_bytes_are_the_strings_they_spell(tmp_path: Path) -> None:
    columns = random_rows(4, rows=500)
    names = np.array([f"user {user}" for user in columns[USER]])
    for half, kind in enumerate((pa.string(), pa.binary())):
        rows = slice(250 * half, 250 * half + 250)
        own = {name: column[rows] for name, column in columns.items()} | {USER: pa.array(names[rows]).cast(kind)}
        write(tmp_path / "p" / str(half), own)
    assert evaluated(tmp_path / "p", tmp_path / "spill") == {"click": in_memory(columns, "click", weighted=False)}


def test_files_of_somebody_who_is_still_writing_are_not_read(tmp_path: Path) -> None:
    columns = random_rows(6, rows=300)
    write(tmp_path / "p", columns)
    write(tmp_path / "p" / "_temporary", columns)
    (tmp_path / "p" / ".part-9.parquet").write_bytes(b"half")
    assert (
        evaluated(tmp_path / "p", tmp_path / "spill")["click"]["rows"]
        == in_memory(columns, "click", weighted=False)["rows"]
    )


@contextmanager
def open_files(most: int) -> Iterator[None]:
    """This process can open so many files more."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    lowest = os.dup(0)
    os.close(lowest)
    resource.setrlimit(resource.RLIMIT_NOFILE, (lowest + most, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


def test_the_runs_of_all_tasks_are_more_than_may_be_open(tmp_path: Path) -> None:
    columns = random_rows(9, rows=600, tasks=("a", "b", "c", "d"))
    write(tmp_path / "p", columns)
    with open_files(80):  # of each task, 18 runs or more by score and as many by user
        found = evaluated(tmp_path / "p", tmp_path / "spill", memory_rows=40)
    assert found == {task: in_memory(columns, task, weighted=False) for task in "abcd"}


def test_more_runs_of_one_task_than_may_be_open(tmp_path: Path) -> None:
    write(tmp_path / "p", random_rows(9, rows=2000))
    told = r"^\d+ sorted runs cannot be opened, raise --memory, which makes them fewer, or `ulimit -n`: .*Too many open"
    with open_files(40), pytest.raises(UserError, match=told):
        evaluated(tmp_path / "p", tmp_path / "spill", memory_rows=20)
    assert not list((tmp_path / "spill").iterdir())


def test_a_task_with_few_labels_does_not_make_as_many_runs_as_the_others(tmp_path: Path) -> None:
    columns = random_rows(10, rows=4000, tasks=("a", "b", "c", "rare"))
    columns["label_rare"][np.arange(4000) % 50 > 0] = np.nan
    predictions = find_predictions(write(tmp_path / "p", columns, files=1), ColumnNames())
    (tmp_path / "spill").mkdir()
    report = read_units(predictions.units, predictions.columns, SpillRoom(tmp_path / "spill", 1000))
    assert len(report.tasks["rare"].runs["by score"]) == 1
    # 3,600 rows of each have a label.
    assert all(len(report.tasks[task].runs["by score"]) < 10 for task in "abc")


@pytest.mark.ray
def test_nothing_is_left_after_an_error(tmp_path: Path) -> None:
    columns = random_rows(7, rows=3000)
    columns["score_click"][2900] = np.nan
    write(tmp_path / "p", columns)
    (tmp_path / "spill").mkdir()
    for job in (SerialJob(), RayJob(rows_per_task=100)):
        with pytest.raises(
            UserError, match=r"part-2.parquet: row group 12, row 60 \(from 0\): column 'score_click' is nan"
        ):
            evaluated(tmp_path / "p", tmp_path / "spill", job=job)
        assert not list((tmp_path / "spill").iterdir())
