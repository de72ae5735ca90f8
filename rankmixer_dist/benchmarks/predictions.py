"""Exact figures of predictions on disk over Ray: time and memory, beside one process that reads and sorts them too."""

import math
import tempfile
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from data_pipeline.predictions import ColumnNames, evaluate_predictions, find_predictions
from rankmixer_dist.benchmarks.figure import Figure
from rankmixer_dist.benchmarks.metric_peers import ScoredRows
from rankmixer_dist.config import RunConfig
from rankmixer_dist.evaluation.figures import SerialWorkers, figures_of
from rankmixer_dist.evaluation.sorting import Sorter, SpillRoom
from rankmixer_dist.metrics import TaskMetrics

FILE_ROWS, ROW_GROUP_ROWS, MEMORY_ROWS = 1 << 22, 1 << 18, 1 << 20
COLUMNS = ["user_id", "label", "score"]


def measure(config: RunConfig, *, rows: int, users: int, check_rows: int, memory_mib: int) -> list[Figure]:
    """All figures; every metric of all rows has to be the same, to the last bit, as from one process."""
    with tempfile.TemporaryDirectory(prefix="bench-predictions-") as name:
        check(config.seed, Path(name) / "small", check_rows, users)
        folder = Path(name) / "all"
        write_predictions(config.seed, folder, rows, users)
        parquet_bytes = sum(path.stat().st_size for path in folder.iterdir())
        print(f"{rows:,} rows in {len(list(folder.iterdir()))} files, {parquet_bytes / 1e6:,.0f} MB")
        start = time.perf_counter()
        found = over_ray(folder, memory_mib)
        seconds = time.perf_counter() - start
        start = time.perf_counter()
        for _ in batches(folder):
            pass
        reading = time.perf_counter() - start
        start, cpu_start = time.perf_counter(), time.process_time()
        expected = one_process(folder, Path(name))
        alone, cpu_alone = time.perf_counter() - start, time.process_time() - cpu_start
    figures = found["tasks"]["label"]
    same(figures, expected)
    print(
        f"AUC {figures['auc']!r}, UAUC {figures['uauc']!r} of {figures['users_scored']:,} users: equal to the last bit"
    )
    against = "one process, a million rows in memory"
    return [
        Figure(f"predictions over Ray, {rows:,} rows, all figures", seconds, "s", alone, against),
        Figure("the same", rows / seconds, "rows/s", rows / alone, against),
        Figure("CPU time of all workers", found["worker_cpu_s"], "s", cpu_alone, against),
        Figure("the same", seconds, "s", reading, "one process, pyarrow reading the columns alone"),
        Figure(
            "largest resident memory of a worker", found["worker_peak_bytes"] / 2**20, "MiB", memory_mib, "the limit"
        ),
    ]


def check(seed: int, folder: Path, rows: int, users: int) -> None:
    """Compares the figures of few rows with those of the state in memory; this starts Ray, which is not timed."""
    write_predictions(seed + 1, folder, rows, users)
    state = TaskMetrics()
    for scores, labels, user_ids in batches(folder):
        state.update(scores, labels, user_ids)
    same(evaluate_predictions(find_predictions(folder, ColumnNames()))["tasks"]["label"], state.compute())


def same(found: dict[str, Any], expected: Any) -> None:
    """Every figure, to the last bit."""
    differing = {name: (found[name], value) for name, value in expected.items() if found[name] != value}
    assert not differing, differing


def write_predictions(seed: int, folder: Path, rows: int, users: int) -> None:
    """Files of scored rows of users with Zipf activity; any number, a few files' worth in memory."""
    folder.mkdir()

    def write(number: int) -> None:
        some = ScoredRows.random([seed, number], min(FILE_ROWS, rows - number * FILE_ROWS), users)
        table = pa.table({"user_id": some.user_ids, "label": some.labels.astype(np.uint8), "score": some.scores})
        pq.write_table(table, folder / f"part-{number:05d}.parquet", row_group_size=ROW_GROUP_ROWS)

    with ThreadPoolExecutor(max_workers=2) as pool:
        list(pool.map(write, range(math.ceil(rows / FILE_ROWS))))


def over_ray(folder: Path, memory_mib: int) -> dict[str, Any]:
    """What `evaluate.py --predictions` finds."""
    return evaluate_predictions(find_predictions(folder, ColumnNames()), memory_gib=memory_mib / 1024)


def batches(folder: Path) -> Iterator[tuple[np.ndarray, np.ndarray, np.ndarray]]:
    """Scores, labels and user ids of a row group at a time, read by this process."""
    for path in sorted(folder.iterdir()):
        with pq.ParquetFile(path) as file:
            for group in range(file.num_row_groups):
                table = file.read_row_group(group, columns=COLUMNS)
                yield tuple(table[name].to_numpy() for name in ("score", "label", "user_id"))


def one_process(folder: Path, spill: Path) -> Any:
    """The same figures by the same engine in this process, a million rows in memory."""
    room = SpillRoom(spill, MEMORY_ROWS)
    sorter = Sorter(["label"], room)
    for scores, labels, user_ids in batches(folder):
        sorter.add("label", {"scores": scores, "labels": labels, "user_ids": user_ids})
    sorter.finish()
    return figures_of([sorter.rows], SerialWorkers(), room)["label"][None].figures
