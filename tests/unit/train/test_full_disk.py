"""On a full disk a run leaves out what it cannot write, says so once, and what was there stays whole."""

import json
import os
import resource
from contextlib import contextmanager

import numpy as np
import pytest
import torch
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from rankmixer_dist.config import load_config
from rankmixer_dist.errors import UserError
from rankmixer_dist.train.full_disk import Complaint, RecordFile
from rankmixer_dist.train.metrics_log import MetricsLog, cut_back
from rankmixer_dist.train.row_audit import RowAudit, trained_rows
from rankmixer_dist.train.run_dir import claim_run_dir, only_job
from tests.conftest import ROOT


@contextmanager
def no_file_beyond(size):
    """Writing fails there as on a full disk: a part of what is written may get through."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


def line(step):
    return {"step": step, "loss": step / 8}


def steps(run_dir):
    return [json.loads(text)["step"] for text in (run_dir / "metrics.jsonl").read_text().splitlines()]


def shown(run_dir):
    board = EventAccumulator(str(run_dir / "tensorboard")).Reload()
    return [(event.step, event.value) for event in board.Scalars("loss")]


@pytest.mark.parametrize("more", [0, 1, 10])
def test_lines_that_do_not_fit_are_left_out_and_none_is_torn(tmp_path, capsys, more):
    log = MetricsLog(tmp_path, resume_step=0)
    log.write(line(1))
    (board,) = (tmp_path / "tensorboard").iterdir()
    sizes = [(tmp_path / "metrics.jsonl").stat().st_size, board.stat().st_size]
    assert sizes[0] + 10 < sizes[1]
    with no_file_beyond(sizes[0] + more):
        log.write(line(2))
        log.write(line(3))
        assert [(tmp_path / "metrics.jsonl").stat().st_size, board.stat().st_size] == sizes
    log.write(line(4))
    with no_file_beyond(board.stat().st_size + 5):
        log.write(line(5))  # this one has room, its events have not
    log.write(line(6))
    log.close()
    assert steps(tmp_path) == [1, 4, 5, 6]
    assert shown(tmp_path) == [(1, 0.125), (4, 0.5), (6, 0.75)]
    assert capsys.readouterr().err == (
        f"warning: {tmp_path / 'metrics.jsonl'}: cannot be written ([Errno 27] File too large); the run goes on "
        "without log lines until they can be written\n"
    )


def test_a_part_of_a_line_that_stayed_is_removed_before_the_next(tmp_path, monkeypatch, capsys):
    file = RecordFile(tmp_path / "log", Complaint("-"))
    file.append(b"one\n")
    with monkeypatch.context() as stuck, no_file_beyond(6):
        stuck.setattr(os, "ftruncate", lambda *_: (_ for _ in ()).throw(OSError(5, "Input/output error")))
        file.append(b"two and more\n")
        assert (tmp_path / "log").read_bytes() == b"one\ntw"
        file.append(b"")
    file.append(b"three\n")
    file.close()
    assert (tmp_path / "log").read_bytes() == b"one\nthree\n"
    assert capsys.readouterr().err.count("warning: ") == 1


def test_a_log_that_begins_on_a_full_disk_begins_later(tmp_path, capsys):
    with no_file_beyond(0):
        log = MetricsLog(tmp_path, resume_step=0)
        log.write(line(1))
    log.write(line(2))
    log.close()
    assert steps(tmp_path) == [2]
    assert shown(tmp_path) == [(2, 0.25)]
    assert capsys.readouterr().err.count("warning: ") == 1


def test_later_lines_are_cut_off_without_room(tmp_path, capsys):
    path = tmp_path / "metrics.jsonl"
    path.write_text("".join(json.dumps(line(step)) + "\n" for step in (1, 2, 3)) + '{"step": 4, "lo')
    with no_file_beyond(0):
        log = MetricsLog(tmp_path, resume_step=2)
    assert steps(tmp_path) == [1, 2]
    log.write(line(3))
    log.close()
    assert steps(tmp_path) == [1, 2, 3]
    assert capsys.readouterr().err.count("warning: ") == 1  # TensorBoard's


def test_lines_in_another_order_that_cannot_be_cut_off_stay_as_they_are(tmp_path, capsys):
    path = tmp_path / "metrics.jsonl"
    path.write_text("".join(json.dumps(line(step)) + "\n" for step in (1, 3, 2)))
    good = path.read_bytes()
    with no_file_beyond(0):
        with pytest.raises(OSError, match="File too large"):
            cut_back(path, 2)
        log = MetricsLog(tmp_path, resume_step=2)
    log.write(line(3))
    log.close()
    assert path.read_bytes() == good
    assert {each.name for each in tmp_path.iterdir()} == {"metrics.jsonl", "tensorboard"}
    assert capsys.readouterr().err.count("warning: ") == 1


@pytest.mark.parametrize("make", [os.mkfifo, os.mkdir, lambda path: path.symlink_to("/dev/full")])
def test_what_is_no_file_gets_no_lines_and_nobody_waits(tmp_path, capsys, make):
    make(tmp_path / "metrics.jsonl")
    log = MetricsLog(tmp_path, resume_step=0)
    log.write(line(1))
    log.close()
    assert shown(tmp_path) == [(1, 0.125)]
    assert capsys.readouterr().err.count("warning: ") == (0 if (tmp_path / "metrics.jsonl").is_file() else 1)


class Rows:
    """A batch of which the audit wants two things."""

    def __init__(self, *ids):
        self.row_id_B, self.weight_B = torch.tensor(ids), torch.ones(len(ids))


def test_rows_that_could_not_be_written_are_in_the_next_file(tmp_path, one_rank, capsys):
    audit = RowAudit(tmp_path, one_rank, resume_step=0)
    for step in (1, 2, 3):
        audit.add(Rows(step, 10 * step))
        with no_file_beyond(0 if step < 3 else resource.RLIM_INFINITY):
            audit.write(step)
    assert sorted(trained_rows(tmp_path)) == [1, 2, 3, 10, 20, 30]
    assert [path.name for path in (tmp_path / "rows_trained").iterdir()] == ["step-00000003.rank-00000.npy"]
    assert np.load(tmp_path / "rows_trained" / "step-00000003.rank-00000.npy").dtype == np.int64
    assert capsys.readouterr().err.count("its rows are kept for the file of the next checkpoint") == 1


def test_a_config_that_is_there_stays_and_a_new_one_is_whole_or_absent(tmp_path, capsys):
    config = load_config(ROOT / "configs" / "quickstart.yaml", [f"runs={tmp_path}"])
    with no_file_beyond(100), pytest.raises(UserError, match="File too large"):
        claim_run_dir(config)
    assert [*config.run_dir.iterdir()] == []
    path = claim_run_dir(config) / "config.yaml"
    good = path.read_bytes()
    longer = load_config(ROOT / "configs" / "quickstart.yaml", [f"runs={tmp_path}", "train.epochs=7"])
    with no_file_beyond(100), only_job(config.run_dir):
        claim_run_dir(config)
        assert capsys.readouterr().err == ""
        claim_run_dir(longer)
    assert path.read_bytes() == good
    assert capsys.readouterr().err.count("File too large); it stays as it was") == 1
    claim_run_dir(longer)
    assert path.read_bytes() != good
