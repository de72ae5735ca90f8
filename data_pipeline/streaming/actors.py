"""Ray actors that hold a model and work; one that dies is replaced, and its work is given out again."""

from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from data_pipeline.ray_cluster import join_ray
from data_pipeline.streaming.worker import Method, Worker
from rankmixer_dist.errors import UserError

_ATTEMPTS = 3


@dataclass
class _Call:
    key: Any
    method: Method
    arguments: tuple[Any, ...]
    deaths: int = 0


class ActorPool:
    """A `Pool` of Ray actors. Joins a Ray cluster or starts one, and leaves it at the end of a `with` block.

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
        self._scoring: deque[_Call] = deque()
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
        return len(self._waiting) + len(self._scoring) + len(self._running)

    def call(self, key: Any, method: Method, *arguments: Any) -> None:
        # Scoring is long; reading and figures are short, and of more use soon.
        (self._scoring if method == "score" else self._waiting).append(_Call(key, method, arguments))
        self._give_out()

    def finished(self, timeout_s: float) -> Iterator[tuple[Any, Any]]:
        """As `Pool` says; also raises a `UserError` where a call ends its actor again and again."""
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
        while self._free and (queue := self._waiting or self._scoring):
            actor, call = self._free.pop(), queue.popleft()
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
