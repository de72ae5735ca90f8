"""Ray actors that hold a model and work; one that dies is replaced, and its work is given out again."""

from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from data_pipeline.ray_cluster import join_ray
from data_pipeline.streaming.worker import Method, Worker
from rankmixer_dist.errors import UserError, one_line

_ATTEMPTS = 3


@dataclass
class _Call:
    key: Any
    method: Method
    arguments: tuple[Any, ...]
    deaths: int = 0


class ActorPool:
    """A `Pool` of Ray actors. Joins a Ray cluster or starts one, and leaves it at the end of a `with` block.

    An actor gets calls once it has come up, so that none waits for an actor that has no place yet while others idle.

    Args:
        worker: arguments of the actors' `Worker`.
        gpus_per_actor: 0 hides all GPUs from the actors.

    Raises:
        UserError: RAY_ADDRESS names no running cluster, or the cluster has too few GPUs.
    """

    def __init__(self, worker: tuple[Any, ...], *, actors: int, gpus_per_actor: float) -> None:
        self._ray = join_ray()
        resources = self._ray.cluster_resources()
        self.size = max(1, min(actors, int(resources.get("CPU", 1))))  # one more would wait for a CPU for ever
        gpus = resources.get("GPU", 0.0)
        if gpus_per_actor * self.size > gpus:
            raise UserError(
                f"{self.size} actors with {gpus_per_actor:g} GPUs each do not fit into the {gpus:g} of the cluster; "
                "lower stream.actors or stream.gpus_per_actor, which may be a fraction, or 0 for the CPU"
            )
        self._worker = worker
        options: dict[str, Any] = {"num_cpus": 1, "num_gpus": gpus_per_actor}
        if not gpus_per_actor:  # Ray leaves them visible to actors that ask for none
            options["runtime_env"] = {"env_vars": {"CUDA_VISIBLE_DEVICES": ""}}
        self._make = self._ray.remote(Worker).options(**options)
        errors = self._ray.exceptions
        # Its process, its memory, its node; and a node may take along what was done there.
        self._deaths = (errors.RayActorError, errors.OutOfMemoryError, errors.NodeDiedError, errors.ObjectLostError)
        self._waiting: deque[_Call] = deque()
        self._scoring: deque[_Call] = deque()
        self._running: dict[Any, tuple[Any, _Call | None]] = {}  # None: the actor is yet to come up
        self._free: list[Any] = []
        self._stillborn = 0  # actors in a row that have ended before they came up
        self.replaced = 0

    def __enter__(self) -> "ActorPool":
        for _ in range(self.size):
            self._start()
        return self

    def __exit__(self, *_: object) -> None:
        for actor in [*self._free, *(actor for actor, _ in self._running.values())]:
            self._ray.kill(actor)
        self._ray.shutdown()

    @property
    def calls(self) -> int:
        running = sum(call is not None for _, call in self._running.values())
        return len(self._waiting) + len(self._scoring) + running

    def call(self, key: Any, method: Method, *arguments: Any) -> None:
        # Scoring is long; reading and figures are short, and of more use soon.
        (self._scoring if method == "score" else self._waiting).append(_Call(key, method, arguments))
        self._give_out()

    def finished(self, timeout_s: float) -> Iterator[tuple[Any, Any]]:
        """As `Pool` says; also raises a `UserError` where actors cannot start, or end again and again."""
        if not self._running:
            return
        done, _ = self._ray.wait(list(self._running), num_returns=1, timeout=timeout_s)
        if done:  # and all others that are done by now
            done, _ = self._ray.wait(list(self._running), num_returns=len(self._running), timeout=0)
        for reference in done:
            actor, call = self._running.pop(reference)
            try:
                result = self._result(reference)
            except self._deaths as error:
                self._replace(actor, call, error)
                continue
            self._free.append(actor)
            self._give_out()
            if call is None:
                self._stillborn = 0
            else:
                yield call.key, result

    def _result(self, reference: Any) -> Any:
        errors = self._ray.exceptions
        try:
            return self._ray.get(reference)
        except errors.RayTaskError as error:
            if isinstance(error.cause, UserError):
                raise error.cause from None
            raise
        except (errors.ActorUnschedulableError, errors.RuntimeEnvSetupError) as error:
            text = f"the Ray cluster cannot start an actor ({one_line(error)}); mend it, or start another"
            raise UserError(text) from error

    def _start(self) -> None:
        actor = self._make.remote(*self._worker)
        self._running[actor.__ray_ready__.remote()] = (actor, None)

    def _give_out(self) -> None:
        while self._free and (queue := self._waiting or self._scoring):
            actor, call = self._free.pop(), queue.popleft()
            self._running[getattr(actor, call.method).remote(*call.arguments)] = (actor, call)

    def _replace(self, actor: Any, call: _Call | None, error: Exception) -> None:
        if getattr(error, "actor_init_failed", False):  # an exception of ours, which would come again
            raise error
        mend = f"({str(error).strip().splitlines()[0]}); give them more memory, or lower stream.actors"
        if call is None:
            self._stillborn += 1
            if self._stillborn == _ATTEMPTS * self.size:
                raise UserError(f"{self._stillborn} actors in a row have ended before they came up {mend}")
        else:
            call.deaths += 1
            if call.deaths == _ATTEMPTS:
                what = " ".join(map(str, call.key))
                raise UserError(f"{what} has ended {_ATTEMPTS} actors {mend} or stream.batch_size")
            self._waiting.appendleft(call)
        self._ray.kill(actor)
        self.replaced += 1
        self._start()
        self._give_out()
