"""Ray actors that hold a model and work; one that dies is replaced, and its work is given out again."""

from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from data_pipeline.assemble import BatchAssembler
from data_pipeline.ray_cluster import join_ray
from data_pipeline.streaming.scoring import Figures, Item, MakeScorer, Scorer, figures, score
from data_pipeline.streaming.shards import Facts, scan
from data_pipeline.streaming.windows import WindowPlan
from rankmixer_dist.errors import UserError
from rankmixer_dist.metrics import Window
from rankmixer_dist.schema import Schema

Method = Literal["scan", "score", "figures"]

_ATTEMPTS = 3


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

    def figures(self, files: list[Path], window: Window, checkpoint: str) -> Figures:
        """A window's figures."""
        return figures(files, window, checkpoint, tuple(self._schema.tasks))


@dataclass
class _Call:
    key: Any
    method: Method
    arguments: tuple[Any, ...]
    deaths: int = 0


class ActorPool:
    """Calls to a few actors. Joins a Ray cluster or starts one, and leaves it at the end of a `with` block.

    Args:
        worker: arguments of the actors' `Worker`.

    Raises:
        UserError: RAY_ADDRESS names no running cluster.
    """

    def __init__(self, worker: tuple[Any, ...], *, actors: int, gpus_per_actor: float) -> None:
        self._ray = join_ray()
        cpus = int(self._ray.cluster_resources().get("CPU", 1))
        self.size = max(1, min(actors, cpus))  # one more would wait for a CPU for ever
        self._worker = worker
        self._make = self._ray.remote(Worker).options(num_cpus=1, num_gpus=gpus_per_actor)
        self._waiting: deque[_Call] = deque()
        self._running: dict[Any, tuple[Any, _Call]] = {}
        self._free: list[Any] = []
        self.replaced = 0

    def __enter__(self) -> "ActorPool":
        self._free = [self._make.remote(*self._worker) for _ in range(self.size)]
        return self

    def __exit__(self, *_: object) -> None:
        for actor in [*self._free, *(actor for actor, _ in self._running.values())]:
            self._ray.kill(actor)
        self._ray.shutdown()

    @property
    def calls(self) -> int:
        """Given out and not finished."""
        return len(self._waiting) + len(self._running)

    def call(self, key: Any, method: Method, *arguments: Any) -> None:
        """Has some actor do `method(*arguments)`, which `finished` then tells under `key`."""
        self._waiting.append(_Call(key, method, arguments))
        self._give_out()

    def finished(self, timeout_s: float) -> Iterator[tuple[Any, Any]]:
        """(key, what it returned) of calls that are done; waits for one at most `timeout_s`.

        Raises:
            UserError: a call raised one, or killed its actor again and again.
        """
        if not self._running:
            return
        done, _ = self._ray.wait(list(self._running), num_returns=1, timeout=timeout_s)
        if done:  # and all others that are done by now
            done, _ = self._ray.wait(list(self._running), num_returns=len(self._running), timeout=0)
        for reference in done:
            actor, call = self._running.pop(reference)
            try:
                result = self._ray.get(reference)
            except self._ray.exceptions.RayActorError as error:
                self._replace(actor, call, error)
                continue
            except self._ray.exceptions.RayTaskError as error:
                if isinstance(error.cause, UserError):
                    raise error.cause from None
                raise
            self._free.append(actor)
            self._give_out()
            yield call.key, result

    def _give_out(self) -> None:
        while self._free and self._waiting:
            actor, call = self._free.pop(), self._waiting.popleft()
            self._running[getattr(actor, call.method).remote(*call.arguments)] = (actor, call)

    def _replace(self, actor: Any, call: _Call, error: Exception) -> None:
        call.deaths += 1
        if call.deaths == _ATTEMPTS:
            first = str(error).strip().splitlines()[0]
            raise UserError(
                f"{' '.join(map(str, call.key))} has ended {_ATTEMPTS} actors ({first}); give them more memory, or "
                "lower stream.actors or stream.batch_size"
            )
        self._ray.kill(actor)
        self.replaced += 1
        self._waiting.appendleft(call)
        self._free.append(self._make.remote(*self._worker))
        self._give_out()
