"""What a killed process left is removed by the next one; what belongs to a living or unknown one stays."""

import errno
import fcntl
import json
import os
import signal
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any

import pytest

from data_pipeline.own_folder import OWNER_NAME, OwnFolder, sweep
from rankmixer_dist.errors import UserError

HOLD = """
import sys
from pathlib import Path
from data_pipeline.own_folder import OwnFolder
own = OwnFolder(Path(sys.argv[1]), "spill-")
(own.path / "rows").write_bytes(bytes(1000))
print(own.path, flush=True)
sys.stdin.read()
"""


@pytest.fixture
def held(tmp_path: Path):
    """Another process, and the folder in `tmp_path` that it works in."""
    process = subprocess.Popen(
        [sys.executable, "-c", HOLD, str(tmp_path)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        env=os.environ | {"PYTHONPATH": str(Path(__file__).parents[2])},
    )
    assert process.stdout is not None
    yield process, Path(process.stdout.readline().strip())
    process.kill()
    process.communicate()


def test_a_killed_process_is_tidied_up_after_and_a_living_one_is_not(held, tmp_path: Path) -> None:
    process, folder = held
    with OwnFolder(tmp_path, "spill-") as own:
        assert sweep(tmp_path, "spill-") == []
        process.send_signal(signal.SIGKILL)
        process.wait()
        (line,) = sweep(tmp_path, "spill-")
        assert line == f"{folder}: removed; process {process.pid} was killed while it worked in it"
        assert list(tmp_path.iterdir()) == [own.path]
    assert not list(tmp_path.iterdir())


REMOVE = """
import os, sys
from pathlib import Path
from data_pipeline.own_folder import OWNER_NAME, OwnFolder
own = OwnFolder(Path(sys.argv[1]), "spill-")
for name in range(30):
    (own.path / f"folder{name}").mkdir()
    (own.path / f"rows{name}").touch()
def watch(event, arguments):
    if event == "os.remove" and os.fspath(arguments[0]).endswith(OWNER_NAME):
        print(os.listdir(own.path))
sys.addaudithook(watch)
own.remove()
"""


def test_the_owners_mark_goes_last(tmp_path: Path) -> None:
    command = [sys.executable, "-c", REMOVE, str(tmp_path)]
    environment = os.environ | {"PYTHONPATH": str(Path(__file__).parents[2])}
    assert subprocess.check_output(command, text=True, env=environment) == f"{[OWNER_NAME]}\n"
    assert not list(tmp_path.iterdir())


def test_a_folder_that_workers_still_write_into_goes_too(tmp_path: Path) -> None:
    own = OwnFolder(tmp_path, "spill-")
    runs = own.path / "runs"
    runs.mkdir()
    begun = threading.Event()

    def write() -> None:
        for number in range(100_000):
            try:
                (runs / str(number)).touch()
            except FileNotFoundError:
                return
            begun.set()

    writer = threading.Thread(target=write)
    writer.start()
    begun.wait()
    own.remove()
    writer.join()
    assert not list(tmp_path.iterdir())


def test_folders_of_other_machines_and_of_nobody_stay(tmp_path: Path) -> None:
    for name, owner in (("far", {"boot": "another", "host": "h7", "process": 5}), ("new", None), ("odd", [])):
        (tmp_path / f"spill-{name}").mkdir()
        (tmp_path / f"spill-{name}" / OWNER_NAME).write_text("" if owner is None else json.dumps(owner))
    (tmp_path / "spill-theirs").mkdir()
    (tmp_path / "spill-link").symlink_to(tmp_path / "spill-far")
    before = sorted(tmp_path.rglob("*"))
    (line,) = sweep(tmp_path, "spill-")
    assert line.startswith(f"{tmp_path}/spill-far: process 5 of h7 worked in it")
    assert sorted(tmp_path.rglob("*")) == before
    assert sweep(tmp_path / "nowhere", "spill-") == []


def test_without_locks_a_folder_stays_and_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object) -> None:
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr(fcntl, "flock", refuse)
    with OwnFolder(tmp_path, "x-") as own:
        (line,) = sweep(tmp_path, "x-")
        assert line.startswith(f"{own.path}: process {os.getpid()} of ") and own.path.is_dir()
    assert not list(tmp_path.iterdir())


def test_a_folder_that_goes_while_it_is_looked_at_is_no_killed_ones(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    own = OwnFolder(tmp_path, "x-")
    flock = fcntl.flock

    def late(*arguments: Any) -> None:
        own.remove()
        flock(*arguments)

    monkeypatch.setattr(fcntl, "flock", late)
    assert sweep(tmp_path, "x-") == []
    assert not list(tmp_path.iterdir())


def test_a_folder_that_is_published_is_nobodys(tmp_path: Path) -> None:
    (tmp_path / "taken").mkdir()
    (tmp_path / "taken" / "file").touch()
    with OwnFolder(tmp_path / "new", "x-") as own:
        (own.path / "rows").touch()
        with pytest.raises(OSError, match="not empty"):
            own.publish(tmp_path / "taken")
        own.publish(tmp_path / "done")
    assert [path.name for path in (tmp_path / "done").iterdir()] == ["rows"]
    assert not list((tmp_path / "new").iterdir())


def test_a_folder_that_cannot_be_made_is_told(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(UserError, match=r"file: cannot be written \(.*\); free some space, or name another place$"):
        OwnFolder(tmp_path / "file", "x-")
