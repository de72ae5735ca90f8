"""What a run does on a full disk: it trains on without its log, says so once, and leaves nothing half-written."""

import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from rankmixer_dist.checksum import regular_descriptor
from rankmixer_dist.errors import UserError, one_line
from rankmixer_dist.small_file import append_whole


class Complaint:
    """Tells the first file of several that cannot be written, and no other."""

    def __init__(self, consequence: str) -> None:
        self._consequence, self._told = consequence, False

    def tell(self, path: Path, error: BaseException) -> None:
        """Writes one warning, if none was written before."""
        if not self._told:
            self._told = True
            reason = one_line(error.__cause__ or error)
            with suppress(OSError):  # standard error may be a file there too
                print(
                    f"warning: {path}: cannot be written ({reason}); {self._consequence}", file=sys.stderr, flush=True
                )

    @contextmanager
    def instead_of_error(self, path: Path) -> Iterator[None]:
        """An `OSError` of the block, or what `disk_errors_told` makes of one, is told, and no more."""
        try:
            yield
        except (OSError, UserError) as error:
            if not isinstance(error, OSError) and not isinstance(error.__cause__, OSError):
                raise
            self.tell(path, error)


class RecordFile:
    """A file that grows by whole records: one that does not fit leaves the file as it was, and the next is tried anew.

    It is made with the first record, its folder too.
    """

    def __init__(self, path: Path, complaint: Complaint) -> None:
        self._path, self._complaint = path, complaint
        self._descriptor: int | None = None
        self._size = 0

    def append(self, record: bytes) -> None:
        """Writes a record, or nothing."""
        with self._complaint.instead_of_error(self._path):
            if self._descriptor is None:
                self._path.parent.mkdir(parents=True, exist_ok=True)
                self._descriptor = regular_descriptor(self._path, os.O_WRONLY | os.O_APPEND | os.O_CREAT)
                self._size = os.fstat(self._descriptor).st_size
            if os.fstat(self._descriptor).st_size != self._size:  # a part of a record that could not be removed
                os.ftruncate(self._descriptor, self._size)
            append_whole(self._descriptor, record)
            self._size += len(record)

    def close(self) -> None:
        """Gives the file back."""
        if self._descriptor is not None:
            with self._complaint.instead_of_error(self._path):
                os.close(self._descriptor)
            self._descriptor = None
