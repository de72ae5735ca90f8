"""A file of JSON lines that outlives whoever writes it: each line is on disk before work goes on."""

import json
import os
from pathlib import Path
from typing import Any

from rankmixer_dist.errors import UserError, one_line


class LineFile:
    """Appends JSON objects, one a line; what is there already is in `lines`.

    A line without its line break was being written when the writer died; it is cut off.

    Raises:
        UserError: another line is no JSON object.
    """

    def __init__(self, path: Path) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        self._path = path
        self._file = path.open("a+b")
        self._file.seek(0)
        content = self._file.read()
        whole = content[: content.rfind(b"\n") + 1]
        if len(whole) < len(content):
            self._file.truncate(len(whole))
        self.lines = [_parsed(path, number, line) for number, line in enumerate(whole.splitlines(), start=1)]

    def append(self, line: dict[str, Any]) -> None:
        """One more line, which stays even if the power fails.

        Raises:
            UserError: the disk is full, or worse.
        """
        try:
            self._file.write(json.dumps(line).encode() + b"\n")
            self._file.flush()
            os.fsync(self._file.fileno())
        except OSError as error:
            raise UserError(f"{self._path}: cannot be written ({one_line(error)}); free some space") from error
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
