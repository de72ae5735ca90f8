"""What the loop reads ahead, and that it counts only what was trained on."""

import time
from types import SimpleNamespace

import pytest
import torch

from rankmixer_dist.batch import Position
from rankmixer_dist.errors import Preempted
from rankmixer_dist.train.loop import Plan, Progress, run_loop
from rankmixer_dist.train.schedule import LearningRate
from rankmixer_dist.train.stopwatch import Stopwatch
from tests.unit.train.test_step import CPU, Told, batch, steps

BATCHES = 5


class Rows:
    """An epoch of five batches, the n-th of which ends at row n."""

    def __init__(self) -> None:
        self.read: list[int] = []

    def epoch(self, position: Position):
        for row in range(position.row, BATCHES):
            self.read.append(row + 1)
            yield batch(row + 1), Position(position.epoch, row + 1)


class Hooks:
    """Those of a run that is asked to stop after so many steps."""

    def __init__(self, stop_after: int | None = None) -> None:
        self._stop_after, self.trained, self.saved = stop_after, [], []
        self.lines, self.beats, self.beats_of_steps = [], [], []

    def doing(self, step, what):
        self.beats.append((step, what))

    def on_step(self, batch):
        self.trained.append(int(batch.row_id_B))
        self.beats_of_steps.append(self.beats[-1])

    def on_log(self, line):
        self.lines.append(line)

    def on_checkpoint(self, progress):
        self.saved.append((progress.step, progress.rows, progress.position))

    def stops(self):
        return len(self.trained) == self._stop_after


def run(topology, rows, hooks, *, look_ahead, epochs=1, total_steps=BATCHES, row=0):
    rate = LearningRate(peak=1.0, total_steps=total_steps, warmup_steps=0, decay="none", final_ratio=1.0)
    plan = Plan(
        epochs=epochs,
        total_steps=total_steps,
        log_every=1,
        checkpoint_every=None,
        checkpoint_epochs=False,
        lr=rate,
        sparse_lr=rate,
        tasks=("t",),
        task_weights=(1.0,),
        flops_per_row=1,
        peak=SimpleNamespace(share=lambda rate: rate),
    )
    return run_loop(
        rows,
        steps(Told(), look_ahead=look_ahead),
        plan,
        progress=Progress(step=row, rows=row, position=Position(0, row)),
        topology=topology,
        stopwatch=Stopwatch(CPU),
        non_finite=SimpleNamespace(add=lambda *args: None, clear=lambda: None),
        loss_range=SimpleNamespace(judge=lambda *args: ()),
        hooks=hooks,
    )


@pytest.mark.parametrize("look_ahead", [True, False])
def test_a_run_that_is_asked_to_stop_leaves_what_it_read_ahead_to_be_read_again(one_rank, look_ahead):
    rows, hooks = Rows(), Hooks(stop_after=2)
    with pytest.raises(Preempted):
        run(one_rank, rows, hooks, look_ahead=look_ahead)
    assert rows.read == [1, 2, 3][: 2 + look_ahead]
    assert hooks.trained == [1, 2]
    assert hooks.saved == [(2, 2, Position(0, 2))]
    again = Hooks()
    run(one_rank, rows, again, look_ahead=look_ahead, row=2)
    assert hooks.trained + again.trained == [1, 2, 3, 4, 5]


@pytest.mark.parametrize("look_ahead", [True, False])
@pytest.mark.parametrize(("epochs", "total_steps"), [(1, 3), (2, 7), (2, 10), (3, 12)])
def test_no_batch_is_read_that_the_plan_does_not_train_on(one_rank, look_ahead, epochs, total_steps):
    rows, hooks = Rows(), Hooks()
    progress = run(one_rank, rows, hooks, look_ahead=look_ahead, epochs=epochs, total_steps=total_steps)
    assert progress.step == total_steps
    assert rows.read == hooks.trained == [step % BATCHES + 1 for step in range(total_steps)]
    assert [line["step"] for line in hooks.lines] == [*range(1, total_steps + 1)]
    assert torch.isfinite(torch.tensor([line["loss"] for line in hooks.lines])).all()


@pytest.mark.parametrize("look_ahead", [True, False])
def test_no_beat_goes_back_and_a_step_begins_with_its_own(one_rank, look_ahead):
    hooks = Hooks()
    run(one_rank, Rows(), hooks, look_ahead=look_ahead, epochs=2, total_steps=2 * BATCHES)
    numbers = [step for step, _ in hooks.beats]
    assert numbers == sorted(numbers)
    assert hooks.beats_of_steps == [(step, "in the training step") for step in range(1, 2 * BATCHES + 1)]


@pytest.mark.parametrize("look_ahead", [True, False])
def test_the_wait_for_data_is_no_part_of_what_a_rank_computes(one_rank, look_ahead, monkeypatch):
    clock, waited_s = time.perf_counter, 0.0
    monkeypatch.setattr(time, "perf_counter", lambda: clock() + waited_s)

    class SlowRows(Rows):
        def epoch(self, position: Position):
            nonlocal waited_s
            for item in super().epoch(position):
                waited_s += 1e6
                yield item

    hooks = Hooks()
    run(one_rank, SlowRows(), hooks, look_ahead=look_ahead)
    assert hooks.lines[0]["data_wait_s"] >= 1e6
    assert all(0 < line["own_s"] < 1e5 for line in hooks.lines)
