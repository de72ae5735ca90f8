"""The scored rows of all ranks on their way to figures: each rank sorts its own, and no rank holds all of many."""

import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray

from rankmixer_dist.batch import Batch
from rankmixer_dist.errors import UserError, disk_errors_told
from rankmixer_dist.evaluation.figures import SerialWorkers, SliceFigures, Workers, figures_of
from rankmixer_dist.evaluation.sorting import Owner, Slice, SortedRows, Sorter, SpillRoom, slice_name
from rankmixer_dist.metrics import ValueCounts
from rankmixer_dist.parallel.topology import Topology, all_gather_objects, failing_together, gather_objects
from rankmixer_dist.train.slice_columns import SliceColumn

GATHERED_ROWS = 1 << 21
"""Rows times tasks of an evaluation that rank 0 counts in its memory, about 60 bytes each; of more, all ranks."""
MEMORY_ROWS = 1 << 20
"""Rows that a rank of a larger evaluation sorts or counts at a time."""

OnCount = Callable[[str, int, int], None]
"""Told a stage of counting, how many of its parts are done, and of how many; by all ranks where none is done."""


class NotCounted(UserError):
    """The rows of an evaluation have no room on the disk, or are in more runs than a rank may open: on all ranks."""


@contextmanager
def _counting_together() -> Iterator[None]:
    try:
        with failing_together():
            yield
    except UserError as error:
        raise NotCounted(str(error)) from error


class RankCounting:
    """Takes one rank's scored rows batch by batch, and gives the figures of all ranks' rows; all ranks call all of it.

    Args:
        tasks: their names, in the order of scores and labels.
        slices: columns whose values get figures of their own.
        rows: of all ranks.
        scratch: folder for the rows, which all ranks see; made where it is needed, and removed at the end of the
            block, with what a killed process left there.

    Raises:
        NotCounted: the rows' folder cannot be made.
    """

    def __init__(
        self,
        tasks: Sequence[str],
        slices: Sequence[SliceColumn],
        topology: Topology,
        *,
        rows: int,
        scratch: Path,
        gathered_rows: int = GATHERED_ROWS,
        memory_rows: int = MEMORY_ROWS,
    ) -> None:
        self._tasks, self._slices, self._topology = tuple(tasks), tuple(slices), topology
        self._scratch = scratch
        in_memory = rows * len(tasks) <= gathered_rows
        self._room = SpillRoom(None if in_memory else scratch, memory_rows)
        self._own = scratch / f"rank-{topology.rank:05d}"
        owners: list[Owner] = [(what, task) for task in tasks for what in ("score", "truth")]
        self._sorter = Sorter(owners, SpillRoom(None if in_memory else self._own, memory_rows), num_slices=len(slices))
        self._rows_of_value = [ValueCounts() for _ in slices]
        self._knows_truth = False
        self._failure: UserError | None = None

    def __enter__(self) -> Self:
        with _counting_together(), disk_errors_told(self._scratch):
            if self._topology.is_first:
                shutil.rmtree(self._scratch, ignore_errors=True)
        try:
            with _counting_together(), disk_errors_told(self._own):
                if self._room.folder is not None:
                    self._own.mkdir(parents=True)
        except NotCounted:  # of any rank
            self.__exit__()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        # Of their own, because after an error others may still be writing; the last one takes the folder along.
        shutil.rmtree(self._own, ignore_errors=True)
        with suppress(OSError):
            self._scratch.rmdir()

    def add(self, batch: Batch, real_B: NDArray[np.bool_], scores_BK: NDArray[np.floating]) -> None:
        """Adds those rows of a batch that are marked; `figures` tells all ranks if they have no room on the disk."""
        if self._failure is not None:
            return
        labels_RK, users_R, scores_RK = (
            batch.labels_BK.numpy()[real_B],
            batch.user_id_B.numpy()[real_B],
            scores_BK[real_B],
        )
        truth_RK = None if batch.truth_BK is None else batch.truth_BK.numpy()[real_B]
        self._knows_truth |= truth_RK is not None
        values = [column.values(batch)[real_B] for column in self._slices]
        for counts, of_rows in zip(self._rows_of_value, values, strict=True):
            counts.update(of_rows)
        shared = {"user_ids": users_R} | {slice_name(index): column for index, column in enumerate(values)}
        try:
            for place, task in enumerate(self._tasks):
                labels_R = labels_RK[:, place]
                known = ~np.isnan(labels_R)
                own = {name: column[known] for name, column in {**shared, "labels": labels_R}.items()}
                self._sorter.add(("score", task), {**own, "scores": scores_RK[known, place]})
                if truth_RK is not None:
                    self._sorter.add(("truth", task), {**own, "scores": truth_RK[known, place]})
        except UserError as error:
            self._failure = error

    def figures(self, on_count: OnCount) -> dict[str, Any] | None:
        """`tasks` of eval.json on rank 0 (with `reachable` where the data knows the true probabilities), `slices` and
        `slice_legends` where there are columns to slice by; None elsewhere.

        Raises:
            NotCounted: a rank has no room on the disk, or more runs than it may open.
        """
        with _counting_together():
            if self._failure is not None:
                raise self._failure
            self._sorter.finish()
        mine = _OfRank(self._sorter.rows, self._rows_of_value, self._knows_truth)
        workers: Workers = RankWorkers(self._topology, on_count)
        if self._room.folder is None:
            gathered = gather_objects(mine)
            if gathered is None:
                return None
            workers = SerialWorkers()
        else:
            gathered = all_gather_objects(mine)
        found = figures_of([part.rows for part in gathered], workers, self._room)
        if not self._topology.is_first:
            return None
        figures: dict[str, Any] = {}
        for task in self._tasks:
            figures[task] = dict(found["score", task][None].figures)
            if any(part.knows_truth for part in gathered):
                best = found["truth", task][None].figures
                figures[task]["reachable"] = {"auc": best["auc"], "uauc": best["uauc"]}
        return {"tasks": figures, **self._by_column(found, [part.rows_of_value for part in gathered])}

    def _by_column(
        self, found: Mapping[Owner, Mapping[Slice, SliceFigures]], counted: Sequence[Sequence[ValueCounts]]
    ) -> dict[str, Any]:
        """`slices` of eval.json, and `slice_legends`."""
        if not self._slices:
            return {}
        slices = {}
        for index, column in enumerate(self._slices):
            rows = ValueCounts()
            for of_rank in counted:
                rows.merge(of_rank[index])
            slices[column.name] = {
                column.label(value): {
                    "rows": count,
                    "tasks": {
                        task: {**own.figures, "rows": own.rows}
                        for task in self._tasks
                        if (own := found["score", task].get((index, value))) is not None
                    },
                }
                for value, count in zip(rows.values.tolist(), rows.counts.tolist(), strict=True)
            }
        return {"slices": slices, "slice_legends": {column.name: column.legend for column in self._slices}}


@dataclass(frozen=True)
class _OfRank:
    """What a rank tells the others: its sorted rows, the rows of each value of each slice column, and whether it has
    true probabilities."""

    rows: Mapping[Owner, SortedRows]
    rows_of_value: Sequence[ValueCounts]
    knows_truth: bool


class RankWorkers:
    """Counts on all ranks, each of which takes every so many-th call and learns what all calls return."""

    def __init__(self, topology: Topology, on_count: OnCount) -> None:
        self._topology, self._on_count = topology, on_count

    def share(self, value: Any) -> Any:
        """The value: each rank has it."""
        return value

    def map(self, title: str, function: Callable[..., Any], calls: Sequence[tuple]) -> list[Any]:
        """What the calls return, in order.

        Raises:
            NotCounted: what the first rank met that met an error, on all ranks.
        """
        self._on_count(title, 0, len(calls))
        rank, size = self._topology.rank, self._topology.world_size
        mine = []
        with _counting_together():
            for number, call in enumerate(calls[rank::size], start=1):
                mine.append(function(*call))
                self._on_count(title, min(number * size, len(calls)), len(calls))
        of_rank = [iter(results) for results in all_gather_objects(mine)]
        return [next(of_rank[index % size]) for index in range(len(calls))]
