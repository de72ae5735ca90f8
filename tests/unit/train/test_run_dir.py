"""A run directory belongs to one job at a time."""

import errno
import fcntl
import os
import subprocess
import sys

import pytest

from rankmixer_dist.errors import UserError
from rankmixer_dist.train import run_dir as run_dir_module
from rankmixer_dist.train.run_dir import is_trained_now, only_job


@pytest.fixture(autouse=True)
def impatient(monkeypatch):
    monkeypatch.setattr(run_dir_module, "_LOCK_PATIENCE_S", 0.0)


def test_a_second_job_is_kept_out_until_the_first_one_is_done(tmp_path):
    with only_job(tmp_path / "run"):
        for _ in range(2):  # being kept out changes nothing
            with (
                pytest.raises(UserError, match=rf"run: process {os.getpid()} on \S+ trains here; stop it, or choose"),
                only_job(tmp_path / "run"),
            ):
                pytest.fail("it was to be kept out")
    with only_job(tmp_path / "run"):
        pass


def test_a_job_that_is_killed_leaves_no_lock(tmp_path, monkeypatch):
    program = f"""
import os, pathlib, signal
from rankmixer_dist.train.run_dir import is_trained_now, only_job
with only_job(pathlib.Path({str(tmp_path)!r})):
    os.kill(os.getpid(), signal.SIGKILL)
"""
    assert subprocess.run([sys.executable, "-c", program], check=False).returncode == -9
    assert "process" in (tmp_path / "lock").read_text()
    with only_job(tmp_path):
        assert (tmp_path / "lock").read_text().startswith(f"process {os.getpid()} on ")


def test_without_locks_a_run_goes_on(tmp_path, monkeypatch):
    def flock(file, operation):
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr(fcntl, "flock", flock)
    with only_job(tmp_path), only_job(tmp_path):
        pass


def test_whether_a_run_is_trained_now_can_be_asked_without_disturbing_it(tmp_path):
    assert not is_trained_now(tmp_path)
    with only_job(tmp_path):
        assert is_trained_now(tmp_path)
        with pytest.raises(UserError, match="evaluates here"), only_job(tmp_path, "evaluates"):
            pytest.fail("it was to be kept out")
    assert not is_trained_now(tmp_path)
