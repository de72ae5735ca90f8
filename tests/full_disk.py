"""A small disk of its own for a test, which can be filled and freed."""

import os
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

_PAGE = 4096


class Disk:
    """A file system in memory, of so many bytes."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._filling = folder / ".filling"

    def fill(self, *, leave: int = 0) -> None:
        """Leaves so many bytes free."""
        self.free()
        status = os.statvfs(self.folder)
        with self._filling.open("wb") as file:
            for _ in range((status.f_bavail * status.f_frsize - leave) // _PAGE):
                file.write(bytes(_PAGE))

    def free(self) -> None:
        """Takes back what `fill` took."""
        self._filling.unlink(missing_ok=True)

    def names(self) -> list[str]:
        """What is on it."""
        return sorted(path.name for path in self.folder.iterdir() if path != self._filling)


@contextmanager
def small_disk(folder: Path, megabytes: int = 4) -> Iterator[Disk]:
    """A disk at a new folder for the length of the block; where none can be mounted, the test is skipped."""
    folder.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", f"size={megabytes}m", "tmpfs", str(folder)]
    try:
        subprocess.run(mount, check=True, capture_output=True)
    except (OSError, subprocess.CalledProcessError) as error:
        pytest.skip(f"no small disk can be mounted here, only root may: {error}")
    try:
        yield Disk(folder)
    finally:
        subprocess.run(["umount", "-l", str(folder)], check=True)
