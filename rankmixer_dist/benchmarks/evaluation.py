"""The counting of evaluate.py on two ranks: time and the memory of each rank, beside one process that holds a task."""

import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch

from rankmixer_dist.batch import Batch, JaggedIds
from rankmixer_dist.benchmarks.figure import Figure
from rankmixer_dist.benchmarks.metric_peers import ScoredRows
from rankmixer_dist.command_line import run_verb
from rankmixer_dist.config import RunConfig
from rankmixer_dist.metrics import TaskMetrics
from rankmixer_dist.parallel.topology import gather_objects, process_group
from rankmixer_dist.train.rank_counting import RankCounting

RANKS, BATCH_ROWS = 2, 8192


def measure(config: RunConfig, *, rows: int, users: int, tasks: int) -> list[Figure]:
    """All figures; every metric of every task has to be the same, to the last bit, as from all rows in one process."""
    with tempfile.TemporaryDirectory(prefix="bench-evaluation-") as name:
        asked, told = Path(name) / "asked.json", Path(name) / "told.json"
        asked.write_text(json.dumps({"seed": config.seed, "rows": rows, "users": users, "tasks": tasks}))
        ranks = ["-m", "rankmixer_dist", "torchrun", "--nproc_per_node", str(RANKS), __file__, str(asked), str(told)]
        subprocess.run([sys.executable, *ranks], check=True)
        found = json.loads(told.read_text())
    start = time.process_time()
    for task in range(tasks):  # one after the other: the rows of all of them are more than a small machine has room for
        state = TaskMetrics()
        for rank in range(RANKS):
            for some in shares(config.seed, rank, rows, users, tasks):
                state.update(some[task].scores, some[task].labels, some[task].user_ids)
        computed, mine = dict(state.compute()), found["tasks"][str(task)]
        assert mine == computed, (mine, computed)
        print(f"task {task}: AUC {mine['auc']!r}, UAUC {mine['uauc']!r}: equal to the last bit", flush=True)
    alone = time.process_time() - start
    against, limit = "one process that holds all rows of a task", "the limit"
    return [
        Figure(f"{rows:,} rows of {tasks} tasks on {RANKS} ranks: CPU time", sum(found["cpu_s"]), "s", alone, against),
        Figure("the same, wall time", found["wall_s"], "s", alone, f"CPU time of {against}"),
        *(
            Figure(f"peak memory of rank {rank}", peak / 2**20, "MiB", 1536, limit)
            for rank, peak in enumerate(found["peak_bytes"])
        ),
        Figure("of which before the first row, most", max(found["bytes_before"]) / 2**20, "MiB", 1536, limit),
    ]


def shares(seed: int, rank: int, rows: int, users: int, tasks: int) -> Iterator[list[ScoredRows]]:
    """A rank's rows batch by batch, the same users in all tasks."""
    for first in range(rank * BATCH_ROWS, rows, RANKS * BATCH_ROWS):
        size = min(BATCH_ROWS, rows - first)
        some = [ScoredRows.random([seed, first, task], size, users) for task in range(tasks)]
        yield [ScoredRows(one.scores, one.labels, some[0].user_ids) for one in some]


def main(arguments: list[str]) -> None:
    """A rank's part: feeds what it makes to the counting, as the scoring of a split does."""
    asked = json.loads(Path(arguments[0]).read_text())
    told = Path(arguments[1])
    with process_group() as topology:
        before = peak()
        start, cpu_start = time.perf_counter(), time.process_time()
        names = [str(task) for task in range(asked["tasks"])]
        scratch = told.parent / "rows.partial"
        with RankCounting(names, (), topology, rows=asked["rows"], scratch=scratch) as counting:
            for some in shares(**asked, rank=topology.rank):
                counting.add(batch(some), np.ones(len(some[0].labels), bool), np.stack([one.scores for one in some], 1))
            figures = counting.figures(lambda stage, done, parts: None)
        wall = time.perf_counter() - start
        parts = gather_objects((time.process_time() - cpu_start, peak(), before))
        if figures is not None and parts is not None:
            cpu_s, peaks, bytes_before = zip(*parts, strict=True)
            measured = {"cpu_s": cpu_s, "peak_bytes": peaks, "bytes_before": bytes_before, "wall_s": wall}
            told.write_text(json.dumps({**figures, **measured}))


def batch(some: list[ScoredRows]) -> Batch:
    """What of a batch counting looks at."""
    rows = len(some[0].labels)
    user_id_B, nothing_B = torch.from_numpy(some[0].user_ids), torch.zeros(rows, dtype=torch.int64)
    return Batch(
        row_id_B=nothing_B,
        user_id_B=user_id_B,
        timestamp_B=nothing_B,
        weight_B=torch.ones(rows),
        labels_BK=torch.from_numpy(np.stack([one.labels for one in some], 1).astype(np.float32)),
        numerics_BN=torch.zeros(rows, 0),
        ids=JaggedIds.on_host((), nothing_B[:0], torch.zeros(0, rows, dtype=torch.int32)),
        global_weight=float(rows),
    )


def peak() -> int:
    """The most resident memory that this process has had."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith("VmHWM:"))


if __name__ == "__main__":
    run_verb(main)
