"""Exact AUC and UAUC, time and memory, beside scikit-learn, loops over users and pandas; and how the time grows."""

import math
import resource
import statistics
from collections.abc import Callable
from functools import partial

import torch
from sklearn.metrics import roc_auc_score

from rankmixer_dist.benchmarks.figure import Figure, interleaved
from rankmixer_dist.benchmarks.memory import peak_bytes
from rankmixer_dist.benchmarks.metric_peers import (
    LARGEST_USERS,
    ScoredRows,
    loop_seconds,
    pandas_user_auc,
    rank_auc,
    sklearn_auc,
)
from rankmixer_dist.config import RunConfig
from rankmixer_dist.metrics import AUC, UserAUC
from rankmixer_dist.train.memory import keep_freed_memory

SKLEARN, PANDAS = "sklearn.metrics.roc_auc_score", "pandas, ranks grouped by user"


def measure(config: RunConfig, *, rows: int, users: int, loop_users: int, largest: int) -> list[Figure]:
    """All figures; prints the growth table."""
    data = ScoredRows.random(config.seed, rows, users)
    figures = compared(data)
    uauc = next(figure.value for figure in figures if figure.name == "UAUC")
    for name, auc_of in (("roc_auc_score", roc_auc_score), ("numpy ranks", rank_auc)):
        against = (
            f"{name} in a loop over users, timed on the {LARGEST_USERS} largest and {loop_users:,} more, scaled up, CPU"
        )
        figures.append(Figure("UAUC", uauc, "s", loop_seconds(data, auc_of, loop_users), against))
    del data
    return figures + growth(config.seed, largest)


def compared(data: ScoredRows) -> list[Figure]:
    """Seconds (medians of three) and peak memory of each state and its peer; all must agree."""
    runs: dict[str, Callable[[], float]] = {
        "AUC": lambda: exact_auc(data),
        SKLEARN: lambda: sklearn_auc(data),
        "UAUC": lambda: exact_user_auc(data),
        PANDAS: lambda: pandas_user_auc(data),
    }
    found = {name: run() for name, run in runs.items()}
    assert abs(found["AUC"] - found[SKLEARN]) < 1e-12 and abs(found["UAUC"] - found[PANDAS]) < 1e-9, found
    seconds = interleaved(runs, repeats=3)
    megabytes = {name: peak_bytes(run) / 1e6 for name, run in runs.items()}
    return [
        Figure(f"{name}{suffix}", values[name], unit, values[peer], peer)
        for values, unit, suffix in ((seconds, "s", ""), (megabytes, "MB", ", peak memory beside the rows"))
        for name, peer in (("AUC", SKLEARN), ("UAUC", PANDAS))
    ]


def growth(seed: int, largest: int) -> list[Figure]:
    """CPU seconds for more and more rows, over n log n; two table lines a size, and the last size against the first.

    CPU time, because the sizes cannot be taken in turn: what else the machine does would show as growth. The part that
    the kernel takes to hand out memory is told apart; it depends on what the machine has been doing.
    """
    keep_freed_memory(torch.device("cpu"))  # as evaluation does
    sizes = [largest // 30, largest // 10, largest // 3, largest]
    per_step: dict[tuple[str, str], list[float]] = {}
    print(f"{'rows':>12} {'':4} {'CPU s':>8} {'kernel s':>9}   ns a row and log2 of rows, without the kernel's")
    for rows in sizes:
        data = ScoredRows.random(seed, rows, rows // 10)
        for name, run in (("AUC", exact_auc), ("UAUC", exact_user_auc)):
            user, kernel = cpu_seconds(partial(run, data))
            total, own = ((seconds * 1e9) / (rows * math.log2(rows)) for seconds in (user + kernel, user))
            per_step.setdefault((name, "CPU time"), []).append(total)
            per_step.setdefault((name, "CPU time without the kernel's"), []).append(own)
            print(f"{rows:12,} {name:4} {user + kernel:8.3f} {kernel:9.3f} {total:8.2f} {own:8.2f}")
    against = f"the same for {sizes[0]:,} rows"
    return [
        Figure(f"{name} of {largest:,} rows, {what} per row and log2 of rows", values[-1], "ns", values[0], against)
        for (name, what), values in per_step.items()
    ]


def cpu_seconds(run: Callable[[], object], repeats: int = 3) -> tuple[float, float]:
    """Median CPU seconds of the process itself and of the kernel for it, after one warm-up."""
    run()
    spent = []
    for _ in range(repeats):
        before = resource.getrusage(resource.RUSAGE_SELF)
        run()
        after = resource.getrusage(resource.RUSAGE_SELF)
        spent.append((after.ru_utime - before.ru_utime, after.ru_stime - before.ru_stime))
    return statistics.median(user for user, _ in spent), statistics.median(kernel for _, kernel in spent)


def exact_auc(data: ScoredRows) -> float:
    """In memory, with its interval."""
    state = AUC()
    state.update(data.scores, data.labels)
    return state.compute().auc


def exact_user_auc(data: ScoredRows) -> float:
    """In memory."""
    state = UserAUC()
    state.update(data.scores, data.labels, data.user_ids)
    return state.compute().uauc
