"""Saving: complete or absent, beside training, with the last few and the best one kept."""

import json
import os
import resource
import shutil
import threading

import pytest
import torch

from rankmixer_dist.checkpoint import folder as folder_module
from rankmixer_dist.checkpoint import saver as saver_module
from rankmixer_dist.checkpoint.about import ABOUT_NAME, read_about
from rankmixer_dist.checkpoint.folder import (
    BEST,
    LATEST,
    checkpoint_path,
    checkpoints,
    find_checkpoint,
    named_checkpoint,
    pointed,
)
from rankmixer_dist.checkpoint.opening import open_checkpoint
from rankmixer_dist.checkpoint.saver import Saver, finish_interrupted
from rankmixer_dist.checkpoint.storage import read_whole
from rankmixer_dist.checksum import json_checksum
from rankmixer_dist.errors import UserError
from rankmixer_dist.pieces import whole
from tests.unit.checkpoint.conftest import about, pieces


def steps(run_dir):
    return [int(path.name[5:]) for path in checkpoints(run_dir)]


@pytest.fixture
def gate(monkeypatch):
    """What writers wait for."""
    opened = threading.Event()
    written = saver_module.write_pieces

    def late(*args, **kwargs):
        assert opened.wait(60)
        written(*args, **kwargs)

    monkeypatch.setattr(saver_module, "write_pieces", late)
    return opened


@pytest.mark.parametrize("asynchronous", [True, False])
def test_what_is_saved_is_what_was_there_at_the_call(tmp_path, one_rank, asynchronous, gate):
    weight = torch.randn(30)
    expected = weight.clone()
    saver = Saver(tmp_path, one_rank, keep=2, asynchronous=asynchronous)
    if not asynchronous:
        gate.set()
    saver.save(about(1), [whole("dense/layer.weight", weight)])
    if asynchronous:
        assert steps(tmp_path) == []  # the thread has not even begun to write
        assert pointed(tmp_path, LATEST) is None
    weight.zero_()  # training goes on
    gate.set()
    saver.finish()
    assert steps(tmp_path) == [1]
    assert pointed(tmp_path, LATEST) == checkpoint_path(tmp_path, 1)
    assert torch.equal(read_whole(checkpoint_path(tmp_path, 1) / "tensors")["dense/layer.weight"], expected)
    assert saver.waited_s > 0


def test_a_save_waits_for_the_one_under_way_before_it_takes_its_copies(tmp_path, one_rank, gate):
    saver = Saver(tmp_path, one_rank, keep=2)
    weight = torch.ones(30)
    saver.save(about(1), [whole("dense/layer.weight", weight)])
    weight.fill_(2.0)
    opening = threading.Timer(0.2, gate.set)
    opening.start()
    saver.save(about(2), [whole("dense/layer.weight", weight)])
    assert gate.is_set()
    saver.finish()
    opening.join()
    for step in (1, 2):
        read = read_whole(checkpoint_path(tmp_path, step) / "tensors")
        assert read["dense/layer.weight"].unique().tolist() == [step]


def test_the_newest_and_the_best_are_kept(tmp_path, one_rank):
    saver = Saver(tmp_path, one_rank, keep=2, is_better=lambda new, old: new["auc"] > old["auc"])
    for step, auc in ((1, 0.6), (2, 0.8), (3, 0.7), (4, 0.75), (5, 0.7)):
        saver.save(about(step, metrics={"auc": auc}), pieces(step))
    saver.finish()
    assert steps(tmp_path) == [2, 4, 5]
    assert pointed(tmp_path, BEST) == checkpoint_path(tmp_path, 2)
    assert find_checkpoint(tmp_path, key="k") == checkpoint_path(tmp_path, 5)
    assert find_checkpoint(tmp_path, key="k", pointer=BEST) == checkpoint_path(tmp_path, 2)
    assert {path.name for path in (tmp_path / "checkpoints").iterdir()} == {
        *("best", "latest", "step-00000002", "step-00000004", "step-00000005"),
    }
    assert open_checkpoint(checkpoint_path(tmp_path, 2)).metrics == {"auc": 0.8}


@pytest.mark.parametrize("name", ["latest", "step-20", "step-00000020"])
def test_a_checkpoint_is_found_by_its_name(saved, name):
    assert named_checkpoint(saved.parent.parent, name, key="k") == saved


def test_a_checkpoint_that_is_not_there_is_told_with_those_that_are(saved, tmp_path):
    with pytest.raises(UserError, match="k .*: no such checkpoint there, but these: step-00000010, step-00000020"):
        named_checkpoint(saved.parent.parent, "step-15", key="k")
    with pytest.raises(UserError, match="but these: none"):
        named_checkpoint(tmp_path / "empty", "step-15", key="k")


def test_a_checkpoint_from_before_trained_until_is_read(tmp_path):
    about(3, trained_until=5).write(tmp_path)
    assert read_about(tmp_path).trained_until == 5
    path = tmp_path / ABOUT_NAME
    content = json.loads(path.read_text())
    del content["checksum"], content["trained_until"]
    path.write_text(json.dumps({"checksum": json_checksum(content), **content}))
    assert read_about(tmp_path).trained_until is None


def test_a_run_that_never_measured_has_no_best(saved):
    with pytest.raises(UserError, match=r"eval.checkpoint best: .*marked as best; train with checkpoint.best set"):
        find_checkpoint(saved.parent.parent, key="eval.checkpoint best:", pointer=BEST)


def test_weights_that_are_not_finite_are_no_checkpoint(tmp_path, one_rank, capfd):
    saver = Saver(tmp_path, one_rank, keep=1)
    saver.save(about(1), pieces(1))
    losses = (("weight", float("nan")), ("weight", float("inf")), ("sum", float("inf")), ("sum", float("nan")))
    for step, (kind, lost) in enumerate(losses, start=2):
        table = torch.ones(40)
        table[7] = lost
        # A rank may hold no rows at all, and counts are no floats.
        none, count = whole("tables/none.sum", torch.ones(0)), whole("routing/steps", torch.tensor([7]))
        saver.save(about(step), [*pieces(step), none, count, whole(f"tables/tag.{kind}", table)])
        saver.wait()
        assert steps(tmp_path) == [1]
        refused = f"not saved, step-00000001 is kept: tables/tag.{kind} is not finite\n"
        assert capfd.readouterr().err.endswith(refused)
    with pytest.raises(UserError, match="step-00000005: not saved"):
        saver.finish()


def test_a_full_disk_keeps_the_checkpoint_before_and_says_so(tmp_path, one_rank, capfd):
    saver = Saver(tmp_path, one_rank, keep=1)
    saver.save(about(1), pieces(1))
    saver.finish()
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(
        resource.RLIMIT_FSIZE, (3000, hard)
    )  # no file may grow beyond it: writing fails as on a full disk
    try:
        saver.save(about(2), pieces(2))
        with pytest.raises(UserError, match=r"step-00000002: not saved, step-00000001 is kept: .*File too large"):
            saver.finish()
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert "warning: " in capfd.readouterr().err
    assert [path.name for path in sorted((tmp_path / "checkpoints").iterdir())] == ["latest", "step-00000001"]
    assert pointed(tmp_path, LATEST) == checkpoint_path(tmp_path, 1)
    open_checkpoint(checkpoint_path(tmp_path, 1))
    saver.save(about(3), pieces(3))  # the run went on, and there is room again
    saver.finish()
    assert steps(tmp_path) == [3]


def test_a_disk_that_can_neither_be_written_nor_listed_is_no_success(tmp_path, one_rank, monkeypatch, capfd):
    def fail(*_, **__):
        raise OSError(5, "Input/output error")

    saver = Saver(tmp_path, one_rank, keep=1)
    for name in ("write_pieces", "checkpoints"):
        monkeypatch.setattr(saver_module, name, fail)
    saver.save(about(1), pieces(1))
    with pytest.raises(UserError, match=r"not saved, older ones cannot be listed \(.*Input/output error\): "):
        saver.finish()
    assert saver.failed == 1
    assert capfd.readouterr().err.count("warning: ") == 1


def test_a_folder_that_cannot_be_written_is_no_end_of_the_run(tmp_path, one_rank, capfd):
    (tmp_path / "checkpoints").write_text("a file where the folder should be")
    saver = Saver(tmp_path, one_rank, keep=1)
    saver.save(about(1), pieces(1))
    with pytest.raises(UserError, match="step-00000001: not saved, there is no older one"):
        saver.finish()
    (tmp_path / "checkpoints").unlink()
    saver.save(about(2), pieces(2))
    saver.finish()
    assert steps(tmp_path) == [2]


def test_what_a_killed_writer_left_is_removed_and_never_taken(tmp_path, one_rank):
    left = tmp_path / "checkpoints" / "step-00000007.partial"
    left.mkdir(parents=True)
    (left / "checkpoint.json").write_text("{}")
    assert steps(tmp_path) == []
    with pytest.raises(UserError, match="no complete checkpoint"):
        find_checkpoint(tmp_path, key="k")
    saver = Saver(tmp_path, one_rank, keep=1)
    saver.save(about(8), pieces(8))
    saver.finish()
    assert steps(tmp_path) == [8]
    assert not left.exists()


def test_a_pointer_to_nothing_is_no_pointer(saved):
    run_dir = saved.parent.parent
    for content in ("step-00000011", "", "../../etc", "\x00"):
        (run_dir / "checkpoints" / LATEST).write_text(content)
        assert pointed(run_dir, LATEST) is None
    assert find_checkpoint(run_dir, key="k") == saved


def test_a_step_that_is_saved_again_replaces_the_old_one(tmp_path, one_rank):
    saver = Saver(tmp_path, one_rank, keep=2)
    for value in (1.0, 2.0):
        saver.save(about(5), [whole("x", torch.tensor([value]))])
    saver.finish()
    assert read_whole(checkpoint_path(tmp_path, 5) / "tensors")["x"].tolist() == [2.0]


class Killed(BaseException):
    """Nothing after it is done."""


class DyingAt:
    """Stands for `os` and `shutil`; dies just before its n-th rename, or in the middle of its n-th removal."""

    def __init__(self, call: int) -> None:
        self.left = call

    def __getattr__(self, name):
        return getattr(os, name)

    def replace(self, *paths):
        self._count()
        os.replace(*paths)

    def rmtree(self, path, **kwargs):
        next(path.glob("tensors/*")).unlink()
        self._count()
        shutil.rmtree(path, **kwargs)

    def _count(self):
        if self.left == 0:
            raise Killed
        self.left -= 1


@pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning")
@pytest.mark.parametrize("call", range(7))
def test_the_next_start_finishes_a_save_that_was_cut_short(tmp_path, one_rank, monkeypatch, call):
    def is_better(new, old):
        return new["auc"] > old["auc"]

    saver = Saver(tmp_path, one_rank, keep=1, is_better=is_better)
    for step, auc in ((1, 0.8), (2, 0.7)):
        saver.save(about(step, metrics={"auc": auc}), pieces(step))
    saver.finish()
    assert steps(tmp_path) == [1, 2]
    dying = DyingAt(call)
    monkeypatch.setattr(folder_module, "os", dying)
    monkeypatch.setattr(folder_module, "shutil", dying)
    saver.save(about(3, metrics={"auc": 0.9}), pieces(3))  # becomes the newest and the best; the other two go
    saver.finish()
    monkeypatch.undo()
    assert dying.left == 0, "it was to die"
    assert steps(tmp_path)[-1] == (2 if call == 0 else 3)
    for path in checkpoints(tmp_path):
        open_checkpoint(path)
    finish_interrupted(tmp_path, keep=1, is_better=is_better)
    expected = {"step-00000001", "step-00000002"} if call == 0 else {"step-00000003"}
    assert {path.name for path in (tmp_path / "checkpoints").iterdir()} == {"best", "latest", *expected}
    assert pointed(tmp_path, LATEST) == checkpoint_path(tmp_path, 2 if call == 0 else 3)
    assert pointed(tmp_path, BEST) == checkpoint_path(tmp_path, 1 if call == 0 else 3)
