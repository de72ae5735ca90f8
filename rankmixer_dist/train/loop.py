"""The training loop: epochs of batches, a log line an interval, a checkpoint now and then."""

import math
import resource
import time
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import islice
from typing import Any, Protocol

import torch

from rankmixer_dist.batch import Batch, Position
from rankmixer_dist.errors import Preempted
from rankmixer_dist.parallel.comm_time import CommTimer
from rankmixer_dist.parallel.topology import Topology, sum_over_ranks
from rankmixer_dist.train.device_copies import DeviceCopies
from rankmixer_dist.train.loss_range import LossRange, label_counts
from rankmixer_dist.train.non_finite import NonFiniteRows
from rankmixer_dist.train.peak import Peak
from rankmixer_dist.train.schedule import LearningRate
from rankmixer_dist.train.step import LearningRates, StepResult
from rankmixer_dist.train.stopwatch import Stopwatch

_COMM_EVERY_INTERVALS = 5
_COMM_STEP = 3
"""Which step's collectives are timed: not one of the first, which still allocate."""


class Epochs(Protocol):
    """The rest of an epoch from a position, each batch with the position after it."""

    def epoch(self, position: Position) -> Iterator[tuple[Batch, Position]]: ...


@dataclass(frozen=True)
class Plan:
    """How long a run is, what its learning rates are and how it is measured.

    `checkpoint_epochs`: also save at the end of each epoch. `flops_per_row`: of a training step's dense part;
    `peak`: of one rank's device.
    """

    epochs: int
    total_steps: int
    log_every: int
    checkpoint_every: int | None
    checkpoint_epochs: bool
    lr: LearningRate
    sparse_lr: LearningRate
    tasks: tuple[str, ...]
    task_weights: tuple[float, ...]
    flops_per_row: int
    peak: Peak

    def rates(self, step: int) -> LearningRates:
        """Learning rates of the `step`-th step, from 1."""
        return LearningRates(self.lr.at(step - 1), self.sparse_lr.at(step - 1))


@dataclass
class Progress:
    """What a run has done: steps taken, rows seen, and the data position that follows."""

    step: int
    rows: int
    position: Position


class Step(Protocol):
    """What trains on batches one after the other, each when its result is asked for; it may read ahead."""

    def run(
        self, batches: Iterator[Batch], *, first: int, rates: Callable[[int], LearningRates]
    ) -> Iterator[StepResult]: ...


class Hooks(Protocol):
    """What a run does beside its steps; every rank calls each hook at the same step."""

    def doing(self, step: int, what: str) -> None:
        """The loop moves on."""
        ...

    def on_step(self, batch: Batch) -> None:
        """A step was taken."""
        ...

    def on_log(self, line: dict[str, Any]) -> None:
        """A log interval ended."""
        ...

    def on_checkpoint(self, progress: Progress) -> None:
        """The state after this step is to be saved."""
        ...

    def stops(self) -> bool:
        """Whether the run was asked to stop; the same answer on all ranks."""
        ...


def run_loop(
    batches: Epochs,
    step: Step,
    plan: Plan,
    *,
    progress: Progress,
    topology: Topology,
    stopwatch: Stopwatch,
    non_finite: NonFiniteRows,
    loss_range: LossRange,
    hooks: Hooks,
) -> Progress:
    """Trains from `progress` to the end of the plan, or until it is asked to stop; saves now and then and at the end.

    A checkpoint ends a log interval, so a run that goes on from it writes the same lines as one that never stopped.

    Raises:
        UserError: the loss is no longer finite; names the step and where the rows' ids are.
        Preempted: the run was asked to stop, and its state is saved.
    """
    interval = _Interval(plan, topology, stopwatch, non_finite, loss_range)
    to_device = DeviceCopies(topology.device)
    saved = progress.step

    def save() -> None:
        nonlocal saved
        if not interval.is_empty:
            hooks.on_log(interval.close(progress))
        hooks.doing(progress.step, "saving a checkpoint")
        hooks.on_checkpoint(progress)
        saved = progress.step

    while progress.step < plan.total_steps and progress.position.epoch < plan.epochs:
        reading = batches.epoch(progress.position)
        ahead = _ReadAhead(reading, plan, progress, to_device, interval, hooks)
        results = step.run(ahead, first=progress.step + 1, rates=plan.rates)
        while (result := interval.next_result(results, progress.step)) is not None:
            item = ahead.read.popleft()
            progress.step += 1
            progress.rows += int(item.batch.global_weight)
            progress.position = item.position
            interval.add(progress.step, item.on_device, result)
            hooks.on_step(item.batch)
            last = progress.step == plan.total_steps
            if last or progress.step % plan.log_every == 0:
                hooks.on_log(interval.close(progress))
            if plan.checkpoint_every is not None and progress.step % plan.checkpoint_every == 0 and not last:
                save()
            if hooks.stops() and not last:
                if saved != progress.step:
                    save()
                raise Preempted(f"asked to stop; saved at step {progress.step} of {plan.total_steps}")
            if last:
                break
        else:
            if plan.checkpoint_epochs and saved != progress.step:
                save()
            progress.position = Position(progress.position.epoch + 1, 0)
        reading.close()  # type: ignore[attr-defined]
    if saved != progress.step:
        hooks.doing(progress.step, "saving a checkpoint")
        hooks.on_checkpoint(progress)
    return progress


@dataclass(frozen=True)
class _Read:
    batch: Batch
    on_device: Batch
    position: Position


class _ReadAhead:
    """The batches of an epoch on the device, no more than the plan has steps; `read`: those not trained on yet."""

    def __init__(
        self,
        reading: Iterator[tuple[Batch, Position]],
        plan: Plan,
        progress: Progress,
        to_device: DeviceCopies,
        interval: "_Interval",
        hooks: Hooks,
    ) -> None:
        self.read: deque[_Read] = deque()
        self._reading = islice(reading, plan.total_steps - progress.step)
        self._progress, self._to_device, self._interval, self._hooks = progress, to_device, interval, hooks

    def __iter__(self) -> Iterator[Batch]:
        return self

    def __next__(self) -> Batch:
        # The step that follows what was read: with look-ahead a batch is read before the step of the one before it.
        self._hooks.doing(self._progress.step + len(self.read), "waiting for data")
        with self._interval.timed_wait():
            item = next(self._reading, None)
        if item is not None:
            self.read.append(_Read(item[0], self._to_device(item[0]), item[1]))
        if self.read:
            self._hooks.doing(self._progress.step + 1, "in the training step")
        if item is None:
            raise StopIteration
        return self.read[-1].on_device


class _Interval:
    """Sums what happened since the last log line."""

    def __init__(
        self,
        plan: Plan,
        topology: Topology,
        stopwatch: Stopwatch,
        non_finite: NonFiniteRows,
        loss_range: LossRange,
    ) -> None:
        self._plan, self._topology, self._stopwatch = plan, topology, stopwatch
        self._non_finite, self._loss_range = non_finite, loss_range
        self._comm_s: float | None = None
        self._own_s: float | None = None
        self._reset()

    def _reset(self) -> None:
        # [3, K]: summed losses, rows with a known label, positive rows.
        self._sums_3K = torch.zeros(3, len(self._plan.tasks), device=self._topology.device)
        self._rows, self._steps, self._skipped, self._wait_s = 0.0, 0, 0, 0.0
        self._start = time.perf_counter()

    @contextmanager
    def timed_wait(self) -> Iterator[None]:
        """What it holds is data wait."""
        start = time.perf_counter()
        yield
        self._wait_s += time.perf_counter() - start

    def next_result(self, results: Iterator[StepResult], step: int) -> StepResult | None:
        """Takes the next step after `step`; None if there is no batch for it.

        Measures the collectives of one step in every few intervals; the lines between repeat its figure.
        """
        if step % (_COMM_EVERY_INTERVALS * self._plan.log_every) != _COMM_STEP % self._plan.log_every:
            return next(results, None)
        waited_s = self._wait_s
        with CommTimer(self._topology.device) as timer:
            result = next(results, None)
        # Batches are read inside the step; the wait for them is a figure of its own.
        self._comm_s, self._own_s = timer.seconds, max(timer.own_s - (self._wait_s - waited_s), 0.0)
        return result

    @property
    def is_empty(self) -> bool:
        """Whether no step was taken since the last line."""
        return self._steps == 0

    def add(self, step: int, batch: Batch, result: StepResult) -> None:
        self._steps += 1
        if result.skipped:
            self._skipped += 1
            self._non_finite.skip(step, batch, result.bad_B)
            return
        self._non_finite.add(step, batch, result.bad_B)
        # A batch's loss is a mean over its own weight; the interval's is the mean over all its rows.
        self._sums_3K[0] += result.losses_K * batch.global_weight
        self._sums_3K[1:] += label_counts(batch)
        self._rows += batch.global_weight

    def close(self, progress: Progress) -> dict[str, Any]:
        plan = self._plan
        rates = plan.rates(progress.step)
        parts = self._stopwatch.totals()
        summed, *counts = sum_over_ranks(self._sums_3K).tolist()
        # All batches may have been left out.
        losses = [value / self._rows if self._rows else math.nan for value in summed]
        seconds = time.perf_counter() - self._start
        loss = math.fsum(weight * value for weight, value in zip(plan.task_weights, losses, strict=True))
        if self._rows and not math.isfinite(loss):
            self._non_finite.stop()
        self._non_finite.clear()
        rate = self._rows / seconds
        line = {
            "step": progress.step,
            "epoch": progress.position.epoch,
            "rows": progress.rows,
            "loss": loss,
            "loss_per_task": dict(zip(plan.tasks, losses, strict=True)),
            "lr": rates.lr,
            "sparse_lr": rates.sparse_lr,
            "samples_per_s": rate,
            "mfu": plan.peak.share(rate * plan.flops_per_row / self._topology.world_size),
            "steps": self._steps,
            "skipped_steps": self._skipped,
            "tasks_out_of_range": len(self._loss_range.judge(progress.step, summed, counts)),
            "step_s": seconds / self._steps,
            "data_wait_s": self._wait_s / self._steps,
            "data_wait_share": self._wait_s / seconds,
            "sparse_s": parts.get("sparse", 0.0) / self._steps,
            "dense_s": parts.get("dense", 0.0) / self._steps,
            "comm_s": self._comm_s,
            "own_s": self._own_s,
            "mem_gb": _memory_gb(self._topology.device),
        }
        self._reset()
        return line


def _memory_gb(device: torch.device) -> float:
    """Peak memory of this rank: the GPU's where there is one, else the process's."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device) / 2**30
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
