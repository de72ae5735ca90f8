"""What one process of a streaming evaluation does, and the pools of such processes, of which one is this process."""

import errno
from collections import deque
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Literal, Protocol

from data_pipeline.assemble import BatchAssembler
from data_pipeline.streaming.scoring import Figures, Item, MakeScorer, Scorer, figures, score
from data_pipeline.streaming.shards import Facts, scan
from data_pipeline.streaming.windows import WindowPlan
from rankmixer_dist.errors import UserError, one_line
from rankmixer_dist.metrics import Window
from rankmixer_dist.schema import Schema

Method = Literal["scan", "score", "figures"]


class Worker:
    """What an actor does, one call at a time. Each call may be made again: it leaves the same, or nothing."""

    def __init__(self, make_scorer: MakeScorer, schema: Schema, batch_size: int, plan: WindowPlan) -> None:
        self._make_scorer, self._schema, self._batch_size, self._plan = make_scorer, schema, batch_size, plan
        self._assemble = BatchAssembler(schema, rows=batch_size, with_truth=False, pin_memory=False)
        self._checkpoint: Path | None = None
        self._scorer: Scorer | None = None

    def scan(self, path: Path) -> Facts:
        """Reads a shard from end to end."""
        return scan(path, self._schema, self._assemble.columns(), self._plan)

    def score(self, item: Item) -> int | str:
        """Scores an item's rows and returns their number, or why its shard has to be set aside."""
        if self._scorer is None or self._checkpoint != item.checkpoint:
            self._scorer = None  # its memory is the next one's
            self._scorer = self._make_scorer(item.checkpoint)
            self._checkpoint = item.checkpoint
        try:
            return score(item, self._scorer, self._schema, self._assemble, self._batch_size)
        except UserError as error:
            return str(error)
        except OSError as error:
            raise UserError(f"{item.target}: cannot be written {_told(error)}") from error

    def figures(self, files: list[Path], window: Window, checkpoint: str) -> Figures:
        """A window's figures."""
        try:
            return figures(files, window, checkpoint, tuple(self._schema.tasks))
        except OSError as error:
            raise UserError(f"{window}: its scores cannot be sorted {_told(error)}") from error


def _told(error: OSError) -> str:
    full = error.errno in (errno.ENOSPC, errno.EDQUOT)
    return f"({one_line(error)}); {'free some space' if full else 'mend that and start again'}"


class Pool(Protocol):
    """Calls to workers."""

    size: int
    replaced: int

    @property
    def calls(self) -> int:
        """Given out and not finished."""
        ...

    def call(self, key: Any, method: Method, *arguments: Any) -> None:
        """Has some worker do `method(*arguments)`, which `finished` then tells under `key`."""
        ...

    def finished(self, timeout_s: float) -> Iterator[tuple[Any, Any]]:
        """(key, what it returned) of calls that are done; waits for one at most `timeout_s`.

        Raises:
            UserError: a call raised one.
        """
        ...


class SerialPool:
    """The null twin: one call after the other in this process."""

    size, replaced = 1, 0

    def __init__(self, worker: Worker) -> None:
        self._worker = worker
        self._waiting: deque[tuple[Any, Method, tuple[Any, ...]]] = deque()

    def __enter__(self) -> "SerialPool":
        return self

    def __exit__(self, *_: object) -> None:
        self._waiting.clear()

    @property
    def calls(self) -> int:
        return len(self._waiting)

    def call(self, key: Any, method: Method, *arguments: Any) -> None:
        self._waiting.append((key, method, arguments))

    def finished(self, timeout_s: float) -> Iterator[tuple[Any, Any]]:
        if self._waiting:
            key, method, arguments = self._waiting.popleft()
            yield key, getattr(self._worker, method)(*arguments)
