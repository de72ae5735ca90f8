"""Training steps over both halves: lookup, dense forward, one backward through both, two updates."""

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from rankmixer_dist.batch import Batch
from rankmixer_dist.losses import multi_task_loss
from rankmixer_dist.models.ranker import Scored
from rankmixer_dist.parallel.engine import DenseEngine
from rankmixer_dist.parallel.topology import any_over_ranks
from rankmixer_dist.sparse.pending import Pending
from rankmixer_dist.sparse.shard import Tables
from rankmixer_dist.train.routing import Routing
from rankmixer_dist.train.stopwatch import Stopwatch


@dataclass(frozen=True)
class LearningRates:
    """Learning rates of one step: of the dense model and of the tables."""

    lr: float
    sparse_lr: float


@dataclass(frozen=True)
class StepResult:
    """What a step did.

    losses_K: [K] this rank's part of the global batch's loss per task, detached; the sum over ranks is the loss.
    bad_B: [B] rows with a logit that is not finite.
    skipped: the batch was left out, on all ranks.
    """

    losses_K: Tensor
    bad_B: Tensor
    skipped: bool = False


class TrainStep:
    """Trains tables and dense model on batches; the gradient convention stands in `parallel.engine`.

    Args:
        look_ahead: send the ids of the next batch to their owners while a step computes. Tables are read when their
            own step comes, so that no bit depends on it.
        task_weights_K: weight of each task's loss in the total.
        auxiliary_weight: weight of the loss of each of the model's auxiliary stages, if it has any.
        routing: of the model's mixtures of experts, if it has any.
        skip_non_finite: leave a batch out before it touches a weight if its loss is not finite on any rank; asking
            costs an exchange a step, and on a GPU a wait for the forward pass.
        stopwatch: told how long lookup (`sparse`) and dense model (`dense`) took, backward included.
    """

    def __init__(
        self,
        tables: Tables,
        engine: DenseEngine,
        *,
        task_weights_K: Tensor,
        auxiliary_weight: float,
        world_size: int,
        stopwatch: Stopwatch,
        routing: Routing | None = None,
        skip_non_finite: bool = False,
        look_ahead: bool = False,
    ) -> None:
        self._tables, self._engine = tables, engine
        self._task_weights_K, self._auxiliary_weight = task_weights_K, auxiliary_weight
        self._world_size, self._skip_non_finite = world_size, skip_non_finite
        self._stopwatch, self._routing = stopwatch, routing
        self._look_ahead = look_ahead

    def run(
        self, batches: Iterator[Batch], *, first: int, rates: Callable[[int], LearningRates]
    ) -> Iterator[StepResult]:
        """Takes a step a batch when its result is asked for.

        With `look_ahead` a batch is read before the step of the one before it. Who asks for no more results leaves a
        batch that was read and not trained on. The caller stops all ranks at the same step.

        Args:
            first: the number of the first step in its run, from 1.
            rates: of the step of a number.
        """
        number, batch, pending = first, next(batches, None), None
        while batch is not None:
            following = next(batches, None) if self._look_ahead else None
            result, pending = self.take(batch, number, rates(number), pending=pending, following=following)
            yield result
            number, batch = number + 1, following if self._look_ahead else next(batches, None)

    def take(
        self,
        batch: Batch,
        number: int,
        rates: LearningRates,
        *,
        pending: Pending | None = None,
        following: Batch | None = None,
    ) -> tuple[StepResult, Pending | None]:
        """Takes the run's `number`-th step, and begins the lookup of the `following` batch, which it returns.

        Args:
            pending: the lookup of `batch`, if it has begun.
        """
        watch = self._stopwatch
        watch.start()
        self._tables.set_lr(rates.sparse_lr)  # before backward, which is where the tables update
        embedded = self._tables.finish(pending or self._tables.start(batch.ids))
        ahead = None if following is None else self._tables.start(following.ids)
        watch.lap("sparse")
        routing = self._routing
        rows = None if routing is None else routing.rows(batch, number)
        scored: Scored = self._engine(embedded, batch.numerics_BN, rows)
        if ahead is not None:
            ahead.send()  # how many ids each rank gets was told while the model computed; the ids travel from here on
        finite_B = torch.cat([scored.logits_BK, *scored.stages], dim=1).detach().isfinite().all(dim=1)
        bad_B = (batch.weight_B > 0) & ~finite_B
        loss, per_task_K = self._loss(scored.logits_BK, batch)
        for stage_BK in scored.stages:
            loss = loss + self._auxiliary_weight * self._loss(stage_BK, batch)[0]
        if routing is not None:
            loss = loss + routing.loss(scored.routing)
        if self._skip_non_finite and any_over_ranks(~loss.detach().isfinite()):
            watch.lap("dense")
            return StepResult(per_task_K.detach(), bad_B, skipped=True), ahead
        # Autograd reaches the lookup's outputs only after the whole dense model; the first of them to get its
        # gradient marks where the backward of the dense half ends.
        crossing = _FirstGradient(embedded.tensors(), watch)
        self._engine.backward(loss * self._world_size)
        watch.lap("sparse" if crossing.passed else "dense")
        self._engine.step(rates.lr)
        if routing is not None:
            routing.update()
        watch.lap("dense")
        return StepResult(per_task_K.detach(), bad_B), ahead

    def _loss(self, logits_BK: Tensor, batch: Batch) -> tuple[Tensor, Tensor]:
        return multi_task_loss(logits_BK, batch.labels_BK, batch.weight_B, self._task_weights_K, batch.global_weight)


class _FirstGradient:
    def __init__(self, tensors: Iterable[Tensor], watch: Stopwatch) -> None:
        self.passed = False
        self._watch = watch
        for tensor in tensors:
            if tensor.requires_grad:
                tensor.register_hook(self._mark)

    def _mark(self, gradient: Tensor) -> None:
        if not self.passed:
            self.passed = True
            self._watch.lap("dense")
