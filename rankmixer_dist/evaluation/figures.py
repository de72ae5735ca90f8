"""From sorted rows to figures: find ranges of keys, count each, put the counts together; by any number of workers."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from rankmixer_dist.errors import UserError, one_line
from rankmixer_dist.evaluation.counting import (
    ScoreStanding,
    average_precision_of,
    count_scores,
    counts_together,
    standings,
    sum_precision,
    total_users,
)
from rankmixer_dist.evaluation.runs import KeyBounds, Run, SortedRuns
from rankmixer_dist.evaluation.sorting import Order, Owner, Slice, SortedRows, SpillRoom
from rankmixer_dist.metrics import Calibration, UserAUCTotals
from rankmixer_dist.metrics.exact_sum import ExactSums
from rankmixer_dist.metrics.tasks import TaskFigures, task_figures

_ORDERS: tuple[Order, Order] = ("by score", "by user")


class Workers(Protocol):
    """Who counts: this process, the ranks of a job, or Ray."""

    def share(self, value: Any) -> Any:
        """What stands in calls for a value that many of them need."""
        ...

    def map(self, title: str, function: Callable[..., Any], calls: Sequence[tuple]) -> list[Any]:
        """What `function(*call)` returns for each call, in order, wherever it ran."""
        ...


class SerialWorkers:
    """The null twin: one call after the other in this process."""

    def share(self, value: Any) -> Any:
        return value

    def map(self, title: str, function: Callable[..., Any], calls: Sequence[tuple]) -> list[Any]:
        return [function(*call) for call in calls]


@dataclass(frozen=True)
class SliceFigures:
    """The figures of a slice, or of all rows, and how many these are, those of weight 0 left out."""

    rows: int
    figures: TaskFigures


def figures_of(
    parts: Sequence[Mapping[Owner, SortedRows]],
    workers: Workers,
    room: SpillRoom,
    *,
    rows_per_range: Callable[[int], int] | None = None,
) -> dict[Owner, dict[Slice, SliceFigures]]:
    """The exact figures of each owner's rows and of each slice of them, those of `TaskMetrics` to the last bit.

    Args:
        parts: what each process sorted, the same owners in all.
        room: the same folder as theirs, seen by all workers.
        rows_per_range: how many of so many rows a range has, at most `room.memory_rows`; that many by default.

    Raises:
        UserError: more runs than a process may have open files.
    """
    owners = list(parts[0])
    merged = {owner: _together([part[owner] for part in parts]) for owner in owners}
    orders = [(owner, order) for owner in owners for order in _ORDERS]
    shared = {(owner, order): workers.share(merged[owner].runs[order]) for owner, order in orders}
    per_range = {owner: _size(merged[owner].rows, room, rows_per_range) for owner in owners}
    found = workers.map("find ranges", find_ranges, [(shared[key], per_range[key[0]], room) for key in orders])
    bounds = dict(zip(orders, found, strict=True))
    counted = _map_nested(
        workers,
        "count",
        count,
        {key: [(key[1], shared[key], own, room) for own in bounds[key]] for key in orders},
    )
    precise = _map_nested(
        workers,
        "PR-AUC",
        take_precision,
        {
            owner: [
                (shared[owner, "by score"], own, standing, room)
                for own, standing in zip(bounds[owner, "by score"], standings(counted[owner, "by score"]), strict=True)
            ]
            for owner in owners
        },
    )
    return {
        owner: {
            which: _slice_figures(
                which, calibration, counted[owner, "by score"], counted[owner, "by user"], precise[owner]
            )
            for which, calibration in merged[owner].calibration.items()
        }
        for owner in owners
    }


def find_ranges(runs: Sequence[Run], max_rows: int, room: SpillRoom) -> list[KeyBounds]:
    """Cuts the rows of all runs, in one order, into ranges of at most so many rows.

    Raises:
        UserError: more runs than this process may have open files.
    """
    try:
        return SortedRuns(runs).bounds(max_rows)
    except OSError as error:
        raise UserError(f"{len(runs)} sorted runs cannot be opened, {room.fewer_runs}: {one_line(error)}") from error


def count(order: Order, runs: Sequence[Run], bounds: KeyBounds, room: SpillRoom) -> dict[Slice, Any]:
    """Counts a range of scores (`AUCCounts`) or of users (`UserAUCTotals`) in the runs."""
    rows = SortedRuns(runs).between(bounds)
    return count_scores(rows, room.memory_rows) if order == "by score" else total_users(rows, room)


def take_precision(
    runs: Sequence[Run], bounds: KeyBounds, standing: Mapping[Slice, ScoreStanding], room: SpillRoom
) -> dict[Slice, ExactSums]:
    """Sums a range of scores up for PR-AUC, which takes what lies above it."""
    return sum_precision(SortedRuns(runs).between(bounds), standing, room.memory_rows)


def _size(rows: int, room: SpillRoom, rows_per_range: Callable[[int], int] | None) -> int:
    return room.memory_rows if rows_per_range is None else min(rows_per_range(rows), room.memory_rows)


def _together(parts: Sequence[SortedRows]) -> SortedRows:
    whole = SortedRows()
    for part in parts:
        whole.rows += part.rows
        for which, calibration in part.calibration.items():
            whole.calibration.setdefault(which, Calibration()).merge(calibration)
        for order, runs in part.runs.items():
            whole.runs[order].extend(runs)
    return whole


def _map_nested(
    workers: Workers, title: str, function: Callable[..., Any], calls: Mapping[Any, Sequence[tuple]]
) -> dict[Any, list]:
    """The results of every key's calls, in their order, all as one stage."""
    results = iter(workers.map(title, function, [call for own in calls.values() for call in own]))
    return {key: [next(results) for _ in own] for key, own in calls.items()}


def _slice_figures(
    which: Slice,
    calibration: Calibration,
    scores: Sequence[Mapping[Slice, Any]],
    users: Sequence[Mapping[Slice, UserAUCTotals]],
    precise: Sequence[Mapping[Slice, ExactSums]],
) -> SliceFigures:
    totals, precision = UserAUCTotals(), ExactSums(1)
    for own in users:
        if which in own:
            totals.merge(own[which])
    for terms in precise:
        if which in terms:
            precision.merge(terms[which])
    auc = counts_together(own[which] for own in scores if which in own)
    pr_auc = average_precision_of(precision, auc.class_totals)
    calibrated = calibration.compute()
    return SliceFigures(calibrated.rows, task_figures(auc.result(), pr_auc, totals.compute(), calibrated))
