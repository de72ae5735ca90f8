"""Where the stages run: on Ray, or one call after the other in this process (the null twin, for tests and small data).

A stage function returns `(*held, report)`. Held tables stay where they were made: the driver passes them on as handles
and never looks inside; only the small reports come to it.
"""

import itertools
import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, Protocol, TypeVar

import pyarrow as pa

from data_pipeline.ray_cluster import join_ray, spill_folder
from data_pipeline.sources import Unit
from rankmixer_dist.errors import UserError

Handle = Any
"""A table held by the job: the table itself (serial) or an object reference (Ray)."""

T = TypeVar("T")

_MIN_ROWS_PER_TASK, _MAX_ROWS_PER_TASK, _TASKS_PER_CPU = 50_000, 1_000_000, 4
_MAX_RUNNING = 1000
_PATIENCE_S = 20.0


class Job(Protocol):
    """Runs stage functions over many arguments."""

    def share(self, value: T) -> T | Handle:
        """A handle of a value that many calls need, sent once to where they run."""
        ...

    def rows_per_task(self, rows: int, *, most: int) -> int:
        """How many of so many rows a task takes, so that it is worth its overhead and there is one for every core."""
        ...

    def tasks(self, units: Sequence[Unit], *, most: int = _MAX_ROWS_PER_TASK) -> list[tuple[Unit, ...]]:
        """Neighbouring units together, by `rows_per_task`."""
        ...

    def map(
        self, function: Callable[..., tuple], calls: Sequence[tuple], *, held: int
    ) -> Iterator[tuple[int, tuple[Handle, ...], Any]]:
        """Calls `function(*call)` for each call; yields (its index, its held tables, its report) as each is done."""
        ...

    def sort(self, tables: list[Handle], keys: list[str]) -> list[Handle]:
        """The rows of all (non-empty) tables as tables whose ranges of `keys` ascend and at most touch."""
        ...

    def fetch(self, handle: Handle) -> pa.Table:
        """A held table."""
        ...


class SerialJob:
    """Everything in this process; all rows are in memory at once."""

    def share(self, value: T) -> T:
        return value

    def rows_per_task(self, rows: int, *, most: int) -> int:
        return most

    def tasks(self, units: Sequence[Unit], *, most: int = _MAX_ROWS_PER_TASK) -> list[tuple[Unit, ...]]:
        return [(unit,) for unit in units]

    def map(
        self, function: Callable[..., tuple], calls: Sequence[tuple], *, held: int
    ) -> Iterator[tuple[int, tuple[Handle, ...], Any]]:
        for index, call in enumerate(calls):
            *tables, report = function(*call)
            yield index, tuple(tables), report

    def sort(self, tables: list[Handle], keys: list[str]) -> list[Handle]:
        return [pa.concat_tables(tables).sort_by([(key, "ascending") for key in keys])]

    def fetch(self, handle: Handle) -> pa.Table:
        return handle


class RayJob:
    """Ray tasks read and write, Ray Data sorts.

    Joins the running Ray of this process, else the cluster at RAY_ADDRESS, else starts one on this machine. On a
    cluster the package must be installed on every node, and the raw and prepared folders must be shared.

    Args:
        rows_per_task: Rows that a task takes at least; by default four tasks a CPU, within bounds.

    Raises:
        UserError: RAY_ADDRESS names no running cluster.
    """

    def __init__(self, *, rows_per_task: int | None = None) -> None:
        self._ray = join_ray()
        self._rows_per_task = rows_per_task

    def share(self, value: T) -> Handle:
        with self._errors_told():
            return self._ray.put(value)

    def rows_per_task(self, rows: int, *, most: int) -> int:
        if self._rows_per_task is not None:
            return min(self._rows_per_task, most)
        cpus = max(1, int(self._ray.cluster_resources().get("CPU", 1)))
        return min(max(rows // (cpus * _TASKS_PER_CPU), _MIN_ROWS_PER_TASK), most)

    def tasks(self, units: Sequence[Unit], *, most: int = _MAX_ROWS_PER_TASK) -> list[tuple[Unit, ...]]:
        return group_units(units, self.rows_per_task(sum(unit.rows for unit in units), most=most))

    def map(
        self, function: Callable[..., tuple], calls: Sequence[tuple], *, held: int
    ) -> Iterator[tuple[int, tuple[Handle, ...], Any]]:
        remote = self._ray.remote(function).options(num_returns=held + 1)
        waiting = iter(enumerate(calls))
        running: dict[Any, tuple[int, tuple[Handle, ...]]] = {}
        try:
            while True:
                for index, call in itertools.islice(waiting, _MAX_RUNNING - len(running)):
                    returned = remote.remote(*call)
                    *tables, report = returned if held else (returned,)
                    running[report] = (index, tuple(tables))
                if not running:
                    return
                (done,), _ = self._ray.wait(list(running), num_returns=1)
                index, tables = running.pop(done)
                report = self._get(done)
                yield index, tables, report if held else report[0]  # one return value is not taken apart by Ray
        finally:
            for report in running:
                self._ray.cancel(report)
            if running:
                # Whoever called removes what they were writing, and it must not come back.
                self._ray.wait(list(running), num_returns=len(running), timeout=_PATIENCE_S, fetch_local=False)

    def sort(self, tables: list[Handle], keys: list[str]) -> list[Handle]:
        import logging

        import ray.data

        logging.getLogger("ray.data").setLevel(logging.ERROR)
        context = ray.data.DataContext.get_current()
        context.enable_progress_bars = False
        if "RAY_DATA_DEFAULT_SHUFFLE_STRATEGY" not in os.environ:
            # The default strategy of Ray 2.60 starts worker processes of its own, 5 s for a small sort instead of 1 s.
            context.shuffle_strategy = "sort_shuffle_pull_based"
        with self._errors_told():
            return ray.data.from_arrow_refs(tables).sort(keys).materialize().to_arrow_refs()

    def fetch(self, handle: Handle) -> pa.Table:
        return self._get(handle)

    def _get(self, reference: Any) -> Any:
        with self._errors_told():
            return self._ray.get(reference)

    @contextmanager
    def _errors_told(self) -> Iterator[None]:
        """Raises a `UserError` of a task as it is, and one where the rows between the stages have no place."""
        errors = self._ray.exceptions
        try:
            yield
        except errors.RayError as error:
            cause = getattr(error, "cause", None)
            if isinstance(cause, UserError):
                raise cause from None
            if any(isinstance(each, errors.OutOfDiskError | errors.ObjectStoreFullError) for each in (error, cause)):
                mend = "free some space, or set TMPDIR to a folder with room for the rows"
                raise UserError(f"{spill_folder()}: no place for what Ray does not keep in memory; {mend}") from error
            raise


def open_job(kind: str) -> Job:
    """The job that `data.job` names."""
    return SerialJob() if kind == "serial" else RayJob()


def group_units(units: Sequence[Unit], rows: int) -> list[tuple[Unit, ...]]:
    """Neighbouring units in groups of at least `rows` rows, the last one perhaps fewer."""
    groups: list[tuple[Unit, ...]] = []
    group: list[Unit] = []
    in_group = 0
    for unit in units:
        group.append(unit)
        in_group += unit.rows
        if in_group >= rows:
            groups.append(tuple(group))
            group, in_group = [], 0
    return [*groups, tuple(group)] if group else groups
