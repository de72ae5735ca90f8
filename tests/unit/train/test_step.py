"""The order in which steps read batches, begin lookups and finish them, with tables and an engine that only tell."""

from types import SimpleNamespace

import pytest
import torch

from rankmixer_dist.batch import Batch, JaggedIds
from rankmixer_dist.embedded import Embedded
from rankmixer_dist.models.ranker import Scored
from rankmixer_dist.train import step
from rankmixer_dist.train.step import LearningRates, TrainStep
from rankmixer_dist.train.stopwatch import Stopwatch

CPU = torch.device("cpu")


def batch(number: int) -> Batch:
    """Of one row, whose id is the number."""
    row = torch.tensor([number])
    ids = JaggedIds(("f",), row, torch.ones(1, 1, dtype=torch.int32), (1,))
    return Batch(row, row, row, torch.ones(1), torch.zeros(1, 1), torch.zeros(1, 0), ids, global_weight=1.0)


class Told:
    """Tables and engine at once, which tell what they are asked."""

    def __init__(self, loss_of=lambda number: 0.0) -> None:
        self.done: list[str] = []
        self._loss_of = loss_of

    def start(self, ids: JaggedIds):
        number = int(ids.values)
        self.done.append(f"start {number}")
        return SimpleNamespace(number=number, send=lambda: self.done.append(f"send {number}"))

    def finish(self, pending) -> Embedded:
        self.done.append(f"finish {pending.number}")
        self._number = pending.number
        return Embedded({"f": torch.full((1, 1), self._loss_of(pending.number), requires_grad=True)}, {})

    def set_lr(self, lr: float) -> None: ...

    def __call__(self, embedded: Embedded, numerics_BN: torch.Tensor, rows: None) -> Scored:
        self.done.append("forward")
        return Scored(embedded.vectors["f"], (), ())

    def backward(self, loss: torch.Tensor) -> None:
        self.done.append("backward")

    def step(self, lr: float) -> None:
        self.done.append(f"update at {lr}")


def steps(told: Told, *, look_ahead: bool, **kwargs) -> TrainStep:
    return TrainStep(
        told,
        told,
        task_weights_K=torch.ones(1),
        auxiliary_weight=0.0,
        world_size=1,
        stopwatch=Stopwatch(CPU),
        look_ahead=look_ahead,
        **kwargs,
    )


def read(told: Told, count: int):
    for number in range(1, count + 1):
        told.done.append(f"read {number}")
        yield batch(number)
    told.done.append("end")


def rates(number: int) -> LearningRates:
    return LearningRates(lr=float(number), sparse_lr=0.0)


def test_ids_are_sent_while_the_step_before_computes_and_tables_read_after_it():
    told = Told()
    results = [*steps(told, look_ahead=True).run(read(told, 2), first=1, rates=rates)]
    assert len(results) == 2
    first = ["read 1", "read 2", "start 1", "finish 1", "start 2", "forward", "send 2", "backward", "update at 1.0"]
    assert told.done == [*first, "end", "finish 2", "forward", "backward", "update at 2.0"]


def test_the_null_twin_begins_a_lookup_in_its_own_step():
    told = Told()
    results = steps(told, look_ahead=False).run(read(told, 2), first=7, rates=rates)
    next(results)
    assert told.done == ["read 1", "start 1", "finish 1", "forward", "backward", "update at 7.0"]
    told.done.clear()
    next(results)
    assert told.done == ["read 2", "start 2", "finish 2", "forward", "backward", "update at 8.0"]
    assert next(results, None) is None


@pytest.mark.parametrize("look_ahead", [True, False])
def test_nothing_is_done_without_a_batch(look_ahead):
    told = Told()
    assert [*steps(told, look_ahead=look_ahead).run(read(told, 0), first=1, rates=rates)] == []
    assert set(told.done) <= {"end"}


def test_a_step_that_is_left_out_keeps_the_lookup_that_has_begun(monkeypatch):
    monkeypatch.setattr(step, "any_over_ranks", bool)  # of one rank
    told = Told(loss_of=lambda number: float("nan") if number == 1 else 0.0)
    ahead = steps(told, look_ahead=True, skip_non_finite=True)
    results = [*ahead.run(read(told, 2), first=1, rates=rates)]
    assert [result.skipped for result in results] == [True, False]
    assert told.done[-4:] == ["finish 2", "forward", "backward", "update at 2.0"]
    assert told.done.count("start 2") == 1
