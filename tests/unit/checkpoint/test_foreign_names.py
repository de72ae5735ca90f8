"""What a person leaves beside the checkpoints of a run is neither taken for one nor removed."""

import shutil

import pytest

from rankmixer_dist.checkpoint.folder import LATEST, checkpoint_path, checkpoints, find_checkpoint, pointed
from rankmixer_dist.checkpoint.opening import open_checkpoint
from rankmixer_dist.checkpoint.saver import Saver, finish_interrupted
from rankmixer_dist.errors import UserError
from tests.unit.checkpoint.conftest import about, pieces

COPIES = ("step-00000020_before_x", "step-00000020 (copy)", "step-00000020.bak", "step-20", "step-", "step-abc",
          "step-000000020", "step-٠٠٠٠٠٠٢٠", "STEP-00000030", "step-00000000", "my.partial.backup")  # fmt: skip
FILES = ("notes", ".DS_Store", "step-5", "step-00000007", "best.txt", "notes.partial.txt", "step-00000009.partial.txt")


def test_foreign_names_are_neither_read_nor_removed(saved, one_rank):
    run_dir, folder = saved.parent.parent, saved.parent
    for name in COPIES:
        shutil.copytree(saved, folder / name)
    for name in FILES:
        (folder / name).write_text("a person's")
    (folder / "step-00000008").symlink_to(folder / "gone")
    own = [checkpoint_path(run_dir, step) for step in (10, 20)]
    assert checkpoints(run_dir) == own
    assert find_checkpoint(run_dir, key="k") == saved
    finish_interrupted(run_dir, keep=2, is_better=None)
    saver = Saver(run_dir, one_rank, keep=1)
    saver.save(about(30), pieces(30))
    saver.finish()
    assert checkpoints(run_dir) == [checkpoint_path(run_dir, 30)]
    left = {path.name for path in folder.iterdir()}
    assert left == {*COPIES, *FILES, "step-00000008", "step-00000030", LATEST}
    for name in COPIES:
        assert open_checkpoint(folder / name).step == 20  # by its path, a copy is as good


def test_a_damaged_copy_is_refused_in_a_line(saved):
    copy = saved.with_name("step-00000020_before_x")
    shutil.copytree(saved, copy)
    (copy / "tensors" / "index.json").unlink()
    with pytest.raises(UserError, match=r"_before_x/tensors/index\.json: No such file .*; no older checkpoint"):
        open_checkpoint(copy)


def test_a_copy_under_the_name_of_another_step_is_refused(saved):
    copy = checkpoint_path(saved.parent.parent, 25)
    shutil.copytree(saved, copy)
    with pytest.raises(UserError, match=r"step-00000025: holds step 20; .*to go on from step-00000020"):
        open_checkpoint(copy)


def test_a_linked_checkpoint_is_read_and_only_the_link_is_pruned(saved, one_rank, tmp_path_factory):
    elsewhere = tmp_path_factory.mktemp("elsewhere") / "kept"
    saved.rename(elsewhere)
    saved.symlink_to(elsewhere)
    run_dir = saved.parent.parent
    assert open_checkpoint(saved).step == 20
    saver = Saver(run_dir, one_rank, keep=1)
    saver.save(about(30), pieces(30))
    saver.finish()
    assert pointed(run_dir, LATEST) == checkpoint_path(run_dir, 30)
    assert not saved.is_symlink()
    assert open_checkpoint(elsewhere).step == 20
