"""Folders that a process works in for a while, and how those that a killed process left are found and removed."""

import fcntl
import json
import os
import secrets
import shutil
import socket
import time
from contextlib import suppress
from pathlib import Path
from types import TracebackType
from typing import Any, Self, TextIO

from rankmixer_dist.errors import disk_errors_told
from rankmixer_dist.there import is_there

OWNER_NAME = ".owner"
_TOKEN_BYTES = 4
_ATTEMPTS, _PAUSE_S = 30, 0.1


class OwnFolder:
    """A new folder `<prefix><random>`, this process's for the length of a `with` block, and removed after it.

    A file in it says who the owner is, and its lock, which goes with the process however that ends, whether the owner
    lives: `sweep` removes what a killed process left.

    Raises:
        UserError: it cannot be made: a full disk, or a folder that may not be written.
    """

    def __init__(self, parent: Path, prefix: str) -> None:
        with disk_errors_told(parent):
            parent.mkdir(parents=True, exist_ok=True)
            self.path = parent.resolve() / f"{prefix}{secrets.token_hex(_TOKEN_BYTES)}"
            self.path.mkdir()
            try:
                self._mark = os.open(self.path / OWNER_NAME, os.O_CREAT | os.O_RDWR, 0o644)
                with suppress(OSError):  # this file system has no locks, and nobody will remove what cannot be judged
                    fcntl.flock(self._mark, fcntl.LOCK_EX)
                # After the lock: whoever reads the file can rely on it.
                owner = {"boot": _boot(), "host": socket.gethostname(), "process": os.getpid()}
                os.write(self._mark, json.dumps(owner).encode())
            except OSError:
                shutil.rmtree(self.path, ignore_errors=True)
                raise

    def publish(self, final: Path) -> None:
        """Gives the folder, which is complete, its name; it is nobody's from then on.

        Raises:
            OSError: something else has that name.
        """
        os.rename(self.path, final)
        (final / OWNER_NAME).unlink()

    def remove(self) -> None:
        """Removes the folder, if it is still this process's; once."""
        _remove(self.path)
        os.close(self._mark)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.remove()


def sweep(parent: Path, prefix: str) -> list[str]:
    """Removes the folders of that prefix whose owner ran on this machine since it was started, and has ended.

    Those of a living process, of another machine on a shared file system and of another user stay.

    Returns:
        A line for each folder that was removed, and for each that may be in the way: of another start or machine, or on
        a file system without locks.
    """
    told = []
    for folder in sorted(_named(parent, prefix)):
        # Open for writing, which nothing does: NFS locks no other file.
        with suppress(OSError), (folder / OWNER_NAME).open("r+") as mark:
            owner = _owner(mark.read())
            if owner is None or folder.stat().st_uid != os.geteuid():
                continue
            lives = _lives(mark) if owner["boot"] == _boot() else None
            if lives is None:
                who = f"process {owner['process']} of {owner['host']}"
                told.append(f"{folder}: {who} worked in it; remove it if that has ended")
            elif not lives:
                _remove(folder)
                told.append(f"{folder}: removed; process {owner['process']} was killed while it worked in it")
    return told


def _lives(mark: TextIO) -> bool | None:
    """Whether the owner holds its lock, or has ended and removed its mark itself since it was opened.

    None where the file system has no locks. Takes the lock if nobody holds it.
    """
    try:
        fcntl.flock(mark, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    except OSError:
        return None
    return os.fstat(mark.fileno()).st_nlink == 0


def _remove(folder: Path) -> None:
    """Removes a folder, the owner's mark last: whoever is killed meanwhile leaves what the next start can judge.

    Workers may still write into the folder. What lies in it is renamed first, where no worker finds it; where one
    makes it anew, the folder is not empty when it is to go, and it is tried again.
    """
    for attempt in range(_ATTEMPTS):
        if attempt:
            time.sleep(_PAUSE_S)
        with suppress(OSError), os.scandir(folder) as entries:
            for entry in entries:
                if entry.is_dir(follow_symlinks=False):
                    going = folder / f"going-{secrets.token_hex(4)}"
                    with suppress(OSError):
                        os.rename(entry.path, going)
                    for path in (going, entry.path):
                        shutil.rmtree(path, ignore_errors=True)
                elif entry.name != OWNER_NAME:
                    with suppress(OSError):
                        os.unlink(entry.path)
        if attempt == _ATTEMPTS - 1 or _holds_its_mark_alone(folder):
            shutil.rmtree(folder, ignore_errors=True)
        if not is_there(folder):
            return


def _holds_its_mark_alone(folder: Path) -> bool:
    try:
        return set(os.listdir(folder)) <= {OWNER_NAME}
    except OSError:
        return True


def _named(parent: Path, prefix: str) -> list[Path]:
    try:
        with os.scandir(parent) as entries:
            return [
                Path(entry.path)
                for entry in entries
                if entry.name.startswith(prefix) and entry.is_dir(follow_symlinks=False)
            ]
    except OSError:
        return []


def _owner(text: str) -> dict[str, Any] | None:
    """What the owner wrote; None while it has not."""
    with suppress(ValueError):
        owner = json.loads(text)
        if isinstance(owner, dict) and owner.keys() >= {"boot", "host", "process"} and owner["boot"]:
            return owner
    return None


def _boot() -> str:
    """What tells this start of this machine from all others; nothing where the system does not say."""
    with suppress(OSError):
        return Path("/proc/sys/kernel/random/boot_id").read_text().strip()
    return ""
