"""A run directory belongs to one job at a time, and goes on with a config that says the same."""

import errno
import fcntl
import os
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from rankmixer_dist.config import RunConfig, load_config
from rankmixer_dist.errors import UserError
from rankmixer_dist.train import run_dir as run_dir_module
from rankmixer_dist.train.run_dir import check_run_dir, claim_run_dir, is_trained_now, only_job

ROOT = Path(__file__).resolve().parents[3]


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


def config(tmp_path: Path, *overrides: str) -> RunConfig:
    return load_config(ROOT / "configs" / "quickstart.yaml", [f"runs={tmp_path}", *overrides])


@pytest.fixture
def earlier(tmp_path: Path) -> Path:
    """The directory of a run by a program that had neither lanes nor scopes."""
    claim_run_dir(config(tmp_path))
    path = tmp_path / "quickstart" / "config.yaml"
    keys = yaml.safe_load(path.read_text())
    del keys["loader"]["interleave"]
    for feature in keys["features"]["features"].values():
        del feature["scope"]
    path.write_text(yaml.safe_dump(keys, sort_keys=False))
    return path


def test_a_key_that_an_earlier_program_lacked_has_its_default(earlier: Path, tmp_path: Path) -> None:
    check_run_dir(config(tmp_path))
    with pytest.raises(UserError, match=r"already holds another config: loader\.interleave was 1 and is now 4"):
        check_run_dir(config(tmp_path, "loader.interleave=4"))


def test_a_key_that_has_gone_is_named(earlier: Path, tmp_path: Path) -> None:
    keys = yaml.safe_load(earlier.read_text())
    keys["loader"]["lookback"] = 3
    earlier.write_text(yaml.safe_dump(keys, sort_keys=False))
    with pytest.raises(UserError, match=r"already holds another config: loader\.lookback was 3 and is now None"):
        check_run_dir(config(tmp_path))
