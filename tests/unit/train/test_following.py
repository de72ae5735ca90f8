"""What an outsider can tell of a run: what each checkpoint has seen of its split, and whether the run goes on."""

import pytest

from rankmixer_dist.checkpoint.about import About, DataPosition
from rankmixer_dist.checkpoint.folder import checkpoint_path
from rankmixer_dist.config import load_config
from rankmixer_dist.errors import UserError
from rankmixer_dist.train.following import FollowedRun
from rankmixer_dist.train.run_dir import only_job

ROWS = {"train": 360, "day2": 360, "day3": 360, "day4": 200}


@pytest.fixture
def publish(days_config, tmp_path):
    """Writes what a checkpoint says of itself; returns the run's folder."""

    def write(step, epoch, row):
        config = load_config(days_config, [f"runs={tmp_path}"])
        folder = checkpoint_path(config.run_dir, step)
        folder.mkdir(parents=True)
        About(
            step=step, rows=step, position=DataPosition(epoch=epoch, row=row), updates=step, moments=(), shapes={},
            world_size=1, config={}, versions={}, trained_until=epoch,
        ).write(folder)  # fmt: skip
        return folder

    return write


def follow(days_config, tmp_path, *overrides):
    return FollowedRun(load_config(days_config, [f"runs={tmp_path}", *overrides]), ROWS)


def test_the_end_of_a_split_and_of_the_run(days_config, tmp_path, publish):
    run = follow(days_config, tmp_path)
    for step, (epoch, row) in enumerate([(0, 128), (0, 360), (1, 1), (3, 199)], start=1):
        publish(step, epoch, row)
    found = run.checkpoints()
    assert [(each.step, each.ends_split, each.ends_run, each.trained_until) for each in found] == [
        (1, False, False, 0),
        (2, True, False, 0),
        (3, False, False, 1),
        (4, False, False, 3),
    ]
    assert run.state() == "stopped"
    with only_job(tmp_path / "days"):
        assert run.state() == "running"
        publish(5, 3, 200)
        assert run.state() == "finished"
    assert run.describe(run.checkpoints()[-1].path) == run.checkpoints()[-1]
    assert follow(days_config, tmp_path, "train.max_steps=4").checkpoints()[3].ends_run


def test_a_run_of_epochs_ends_its_split_in_the_last(days_config, tmp_path, publish):
    run = follow(days_config, tmp_path, "train.split=train", "train.epochs=2")
    for step, (epoch, row) in enumerate([(0, 360), (1, 128), (1, 360)], start=1):
        publish(step, epoch, row)
    assert [(each.ends_split, each.ends_run) for each in run.checkpoints()] == [(False, False)] * 2 + [(True, True)]


def test_a_damaged_checkpoint_is_refused(days_config, tmp_path, publish):
    run = follow(days_config, tmp_path)
    (publish(1, 0, 360) / "checkpoint.json").write_text("{")
    with pytest.raises(UserError, match=r"checkpoint.json: damaged"):
        run.checkpoints()
