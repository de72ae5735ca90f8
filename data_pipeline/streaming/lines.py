"""A file of JSON lines that outlives whoever writes it: each line is on disk before work goes on."""

import json
from pathlib import Path
from typing import Any

from rankmixer_dist.errors import UserError, disk_errors_told
from rankmixer_dist.small_file import append_whole


class LineFile:
    """Appends JSON objects, one a line; what is there already is in `lines`.

    A line without its line break was being written when the writer died; it is cut off.

    Raises:
        UserError: another line is no JSON object.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        with disk_errors_told(path):
            path.parent.mkdir(parents=True, exist_ok=True)
            # Without a buffer: it would keep what a full disk did not take, and try again at the end.
            self._file = path.open("a+b", buffering=0)
            self._file.seek(0)
            content = self._file.read()
            whole = content[: content.rfind(b"\n") + 1]
            if len(whole) < len(content):
                self._file.truncate(len(whole))
        self.lines = [_parsed(path, number, line) for number, line in enumerate(whole.splitlines(), start=1)]

    def append(self, line: dict[str, Any]) -> None:
        """One more line, which stays even if the power fails.

        Raises:
            UserError: the disk is full, or worse; the file is as it was.
        """
        with disk_errors_told(self._path):
            append_whole(self._file.fileno(), json.dumps(line).encode() + b"\n", sync=True)
        self.lines.append(line)

    def close(self) -> None:
        """Closes the file."""
        self._file.close()


def _parsed(path: Path, number: int, line: bytes) -> dict[str, Any]:
    try:
        value = json.loads(line)
    except ValueError as error:
        raise UserError(f"{path}: line {number} is not JSON ({error}); remove the line") from error
    if not isinstance(value, dict):
        raise UserError(f"{path}: line {number} is not an object; remove the line")
    return value
