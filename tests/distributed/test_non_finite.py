"""A loss that is not finite ends the run or is left out, on all ranks at one step, before it reaches a checkpoint."""

import itertools
import json

import pytest
import torch
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from data_pipeline.manifest import read_manifest
from data_pipeline.reading import open_split
from rankmixer_dist.batch import Position
from rankmixer_dist.checkpoint.folder import checkpoints, step_of
from rankmixer_dist.checkpoint.storage import read_whole
from rankmixer_dist.config import load_config
from rankmixer_dist.report.page import render_report

BAD_STEPS = (7, 8)  # behind the warm-up: a step that is left out shifts no learning rate
STOPPED_AT = {  # log_every, checkpoint.every -> steps saved before step 7 came to light
    (10, 7): [],  # the poisoned step itself was to be saved: its interval is closed first
    (10, 3): [3, 6],
    (2, 5): [5],
}


@pytest.fixture(scope="module")
def bad_rows(small_config):
    """Step -> ids of two rows in the half of its batch that the second of two ranks gets."""
    config = load_config(small_config)
    manifest = read_manifest(config.data.prepared, config.features)
    loader = open_split(
        config, manifest, "train", rank=1, world_size=2, batch_size=128, training=True, pin_memory=False
    )
    batches = enumerate(itertools.islice(loader.epoch(Position(0, 0)), max(BAD_STEPS)), start=1)
    return {step: sorted(batch.row_id_B[[3, 17]].tolist()) for step, (batch, _) in batches if step in BAD_STEPS}


class Ended:
    """How the runs of one start ended."""

    def __init__(self, small_config, process, names, ranks):
        self.config, self.process, self.ranks = small_config, process, ranks
        told = [json.loads(line)["errors"] for line in process.stdout.splitlines() if line.startswith('{"errors"')]
        self.errors = dict(zip(names, told, strict=False))

    def run_dir(self, name):
        return load_config(self.config, [f"name={name}-{self.ranks}"]).run_dir

    def lines(self, name, file="metrics.jsonl"):
        return [json.loads(line) for line in (self.run_dir(name) / file).read_text().splitlines()]

    def saved(self, name):
        return [step_of(path) for path in checkpoints(self.run_dir(name))]

    def tensors(self, name):
        return read_whole(checkpoints(self.run_dir(name))[-1] / "tensors")


@pytest.fixture(scope="module", params=[1, 2])
def ended(request, launch, small_config, bad_rows):
    """Ten runs in one start, on one rank and on two: the bad rows lie on one of them."""
    ranks = request.param
    rows = [row for of_step in bad_rows.values() for row in of_step]

    def case(name, what, *overrides):
        stage = {1: 1, 2: 2}[ranks]
        return {
            "what": what,
            "rows": rows,
            "overrides": [f"name={name}-{ranks}", f"dense.zero_stage={stage}", *overrides],
        }

    skip, stop = "train.on_non_finite=skip", "train.on_non_finite=stop"
    cases = {
        "absent": case("absent", "absent", "train.max_steps=12", "train.log_every=2"),
        "diverged": case("diverged", "absent", "dense.lr=1000", "train.max_steps=12", "train.log_every=2"),
        "skip": case("skip", "overflow", skip, "train.max_steps=14", "train.log_every=2", "checkpoint.every=7"),
        "explode": case("explode", "explode", skip, "train.max_steps=25", "checkpoint.every=2"),
    }
    best = ("checkpoint.best.split=test", "checkpoint.best.task=finish")
    cases["measured"] = case("measured", "explode", stop, "train.max_steps=14", "checkpoint.every=7", *best)
    for log_every, every in STOPPED_AT:
        how = (stop, "train.max_steps=14", f"train.log_every={log_every}", f"checkpoint.every={every}")
        cases[f"stop-{log_every}-{every}"] = case(f"stop-{log_every}-{every}", "overflow", *how)
    cases["resumed"] = case("stop-10-3", "overflow", skip, "train.max_steps=14", "train.log_every=10")
    cases["ends"] = case("ends", "overflow", stop, "train.max_steps=14", "train.log_every=5")
    script, listed = "tests/distributed/non_finite_cases.py", json.dumps([*cases.values()])
    process = launch.forked(script, str(small_config), listed, ranks=None if ranks == 1 else ranks)
    found = Ended(small_config, process, cases, ranks)
    assert [*found.errors] == [*cases][:-1], process.stderr[-3000:]
    return found


def same(found, expected):
    return found.keys() == expected.keys() and all(torch.equal(found[key], expected[key]) for key in expected)


def test_a_run_that_stops_says_so_once_with_its_rows(ended, bad_rows):
    said = [line for line in ended.process.stderr.splitlines() if line.startswith("error: ")]
    assert len(said) == 1
    assert said[0].startswith("error: the loss is not finite at step 7: 2 rows, whose ids are in ")
    assert str(ended.run_dir("ends") / "non_finite.jsonl") in said[0]
    assert ended.lines("ends", "non_finite.jsonl") == [{"step": 7, "row_ids": bad_rows[7], "skipped": False}]
    assert ended.process.returncode == 2
    assert "Traceback" not in ended.process.stderr
    assert ended.saved("ends") == []


def test_no_checkpoint_has_poisoned_weights(ended):
    for (log_every, every), steps in STOPPED_AT.items():
        name = f"stop-{log_every}-{every}"
        assert ["not finite at step 7" in error for error in ended.errors[name]] == [True] * ended.ranks
        if name != "stop-10-3":  # which went on
            assert ended.saved(name) == steps
            assert [line["step"] for line in ended.lines(name)] == sorted({*steps, *range(log_every, 7, log_every)})
    assert [line["step"] for line in ended.lines("stop-10-3")] == [3, 6, 10, 14]


def test_a_batch_left_out_touches_nothing(ended, bad_rows):
    assert ended.errors["skip"] == ended.errors["absent"] == [None] * ended.ranks
    skipped, absent = ended.tensors("skip"), ended.tensors("absent")
    assert {"weight", "sum", "exp_avg", "exp_avg_sq"} <= {key.split(".")[-1] for key in skipped}
    assert same(skipped, absent)
    lines = {line["step"]: line for line in ended.lines("skip")}
    assert {step: line["skipped_steps"] for step, line in lines.items() if line["skipped_steps"]} == {7: 1, 8: 1}
    assert lines[7]["loss"] is None and set(lines[8]["loss_per_task"].values()) == {None}
    of_absent = [line["loss"] for line in ended.lines("absent")]
    assert [line["loss"] for line in lines.values() if line["loss"] is not None] == of_absent
    expected = [{"step": step, "row_ids": rows, "skipped": True} for step, rows in bad_rows.items()]
    assert ended.lines("skip", "non_finite.jsonl") == expected


def test_a_stopped_run_goes_on_without_the_bad_batches(ended, bad_rows):
    assert ended.errors["resumed"] == [None] * ended.ranks
    assert same(ended.tensors("stop-10-3"), ended.tensors("skip"))
    told = [(line["step"], line["skipped"]) for line in ended.lines("stop-10-3", "non_finite.jsonl")]
    assert told == [(7, False), (7, True), (8, True)]


def test_lost_weights_are_not_saved_and_end_the_run(ended):
    for error in ended.errors["explode"]:
        assert error.startswith("10 batches in a row have a loss that is not finite, the last at step 17 with 128 bad")
    assert ended.saved("explode") == [4, 6]
    assert all(tensor.isfinite().all() for key, tensor in ended.tensors("explode").items() if "random" not in key)
    refused = [line for line in ended.process.stderr.splitlines() if line.startswith("warning: ") and "saved" in line]
    assert len(refused) == 5  # steps 8 to 16
    # The last two may have failed only after the last line was written.
    assert 3 <= sum(line["failed_checkpoints"] for line in ended.lines("explode")) <= 5
    assert all("not saved, step-00000006 is kept" in line and line.endswith("is not finite") for line in refused)


def test_a_loss_that_leaves_its_range_is_told_once_and_stands_in_the_report(ended):
    assert ended.errors["diverged"] == [None] * ended.ranks
    told = [line for line in ended.process.stderr.splitlines() if "left its range" in line]
    assert len(told) == 1
    assert told[0].startswith("warning: step 2: the loss left its range: ")
    assert "finish " in told[0] and "lower dense.lr or sparse.lr" in told[0]
    out = [line["tasks_out_of_range"] for line in ended.lines("diverged")]
    assert out[0] > 0 and max(out) == 3
    assert not any(line["tasks_out_of_range"] for name in ("absent", "skip") for line in ended.lines(name))
    page = render_report(ended.run_dir("diverged")).read_text()
    assert f"in {sum(map(bool, out))} of {len(out)} lines, from step 2 to" in page
    assert "left its range" not in render_report(ended.run_dir("absent")).read_text()


def test_lost_weights_give_no_figures(ended):
    for error in ended.errors["measured"]:
        assert error.startswith("429 of 429 rows have a score that is not finite: the weights have diverged; lower ")
    assert ended.saved("measured") == []


def test_whoever_watches_or_reads_sees_what_was_left_out(ended):
    shown = [line for line in ended.process.stderr.splitlines() if line.startswith("step 8/14  no loss ")]
    # A rank that holds the others up is named behind it.
    assert shown and all("  not finite, left out: 1" in line for line in shown)
    board = EventAccumulator(str(ended.run_dir("skip") / "tensorboard")).Reload()
    assert [event.step for event in board.Scalars("skipped_steps")] == [2, 4, 6, 7, 8, 10, 12, 14]
    assert [event.step for event in board.Scalars("loss")] == [2, 4, 6, 10, 12, 14]
    page = render_report(ended.run_dir("skip")).read_text()
    assert "Steps left out because their loss was not finite: 2, the last in the line of step 8." in page
    assert "left out because" not in render_report(ended.run_dir("absent")).read_text()
