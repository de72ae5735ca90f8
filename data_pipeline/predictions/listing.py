"""Which files of a folder hold the predictions: each once, and none that may hold rows is left out without a word."""

import json
import os
import stat
from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

from rankmixer_dist.errors import UserError, one_line
from rankmixer_dist.there import is_file, is_folder, is_there, matching

_PARQUET = {".parquet", ".parq", ".pq"}
_OTHER_ROWS = {
    *(".csv", ".tsv", ".psv", ".jsonl", ".ndjson", ".xlsx", ".orc", ".avro", ".arrow", ".arrows", ".feather", ".ipc"),
    *(".npy", ".npz", ".pkl", ".pickle", ".h5", ".hdf5", ".tfrecord", ".tfrecords", ".lance", ".duckdb", ".sqlite"),
}
_PACKED = {".gz", ".bz2", ".xz", ".zst", ".lz4", ".snappy", ".br", ".z"}
_ARCHIVES = {".zip", ".tar", ".tgz", ".7z"}
_MAGIC = b"PAR1"
_OTHER_MAGICS = (b"ORC", b"Obj\x01", b"\x1f\x8b", b"PK\x03\x04", b"\x28\xb5\x2f\xfd", b"BZh", b"ARROW1")
"""Of ORC, Avro, gzip, zip, zstd, bzip2 and Arrow."""
_LOGS = {"_delta_log": "a Delta table", ".hoodie": "a Hudi table", "_spark_metadata": "the output of a Spark stream"}
_MOST_JSON_BYTES = 1 << 24


def list_files(path: Path) -> tuple[list[Path], list[str]]:
    """The file, or the Parquet files of the folder and of those below it, links followed, in the order of their names;
    and what has to be told: files and folders that are reached twice and read once, and files that are not Parquet.

    As Spark and pyarrow do, names that begin with a dot or an underscore are left out.

    Raises:
        UserError: no such file, one that may hold rows but is not plain Parquet, a link that leads nowhere, a table
            format whose log says which files count, a folder that cannot be listed.
    """
    if is_file(path):
        return [path], []
    if not is_there(path):
        raise UserError(f"--predictions {path}: no such file or folder")
    if not is_folder(path):
        raise UserError(f"--predictions {path}: is neither a file nor a folder; name one that holds Parquet")
    walk = _Walk()
    try:
        for folder in (path.resolve(), *path.resolve().parents):
            _refuse_table(folder)
        walk.run(path)
    except OSError as error:
        mend = "name the folder of the files alone"
        raise UserError(f"--predictions {path}: cannot be listed, {mend}: {one_line(error)}") from error
    if not walk.found:
        raise UserError(f"--predictions {path}: holds no *.parquet")
    return sorted(walk.found, key=lambda file: file.relative_to(path)), walk.told


@dataclass
class _Walk:
    """Folders on the way; what is reached by links comes last, so that it is the link that comes second."""

    found: list[Path] = field(default_factory=list)
    told: list[str] = field(default_factory=list)
    _left_out: list[Path] = field(default_factory=list)
    _links: deque[Path] = field(default_factory=deque)
    _reached: dict[object, Path] = field(default_factory=dict)

    def run(self, root: Path) -> None:
        """Lists everything below a folder."""
        self._folder(root, os.path.realpath(root))
        while self._links:
            link = self._links.popleft()
            real = os.path.realpath(link)
            try:
                status = os.stat(link)
            except OSError as error:
                raise UserError(f"{link}: a link that leads nowhere ({error.strerror}); mend or remove it") from error
            if stat.S_ISDIR(status.st_mode):
                self._folder(link, real)
            else:
                self._file(link, real, status)
        if self._left_out:
            more = f" and {len(self._left_out) - 1:,} more" if len(self._left_out) > 1 else ""
            self.told.append(f"{self._left_out[0]}{more}: not Parquet, and left out")

    def _folder(self, root: Path, real_root: str) -> None:
        waiting = [(root, real_root)]
        while waiting:
            folder, real = waiting.pop()
            if self._is_second(folder, real):
                continue
            _refuse_table(folder)
            for entry in sorted(_entries(folder), key=lambda entry: entry.name):
                path = Path(entry.path)
                if entry.name.startswith((".", "_")):
                    continue
                if entry.is_symlink():
                    self._links.append(path)
                elif entry.is_dir():
                    waiting.append((path, f"{real}/{entry.name}"))
                else:
                    self._file(path, f"{real}/{entry.name}", entry.stat())

    def _file(self, path: Path, real: str, status: os.stat_result) -> None:
        if not stat.S_ISREG(status.st_mode):
            raise UserError(f"{path}: is no regular file; move it away, or name the folder of the files alone")
        if not _is_parquet(path):
            self._left_out.append(path)
            return
        hard_link = (status.st_dev, status.st_ino) if status.st_nlink > 1 else real
        if not self._is_second(path, real) and (hard_link == real or not self._is_second(path, hard_link)):
            self.found.append(path)

    def _is_second(self, path: Path, identity: object) -> bool:
        first = self._reached.setdefault(identity, path)
        if first != path:
            self.told.append(f"{path}: is the same as {first}, and read once")
        return first != path


def _entries(folder: Path) -> Iterator[os.DirEntry[str]]:
    with os.scandir(folder) as entries:
        yield from entries


def _is_parquet(path: Path) -> bool:
    """Whether a file has to be read; not so one that is about the data, such as a README.

    Raises:
        UserError: it may hold rows, but not as plain Parquet.
    """
    suffix, inner = path.suffix.lower(), Path(path.stem).suffix.lower()
    if suffix in _PARQUET:
        return True
    if suffix in _PACKED and inner in {"", *_PARQUET, *_OTHER_ROWS, ".json"}:
        raise UserError(f"{path}: is packed, and its rows would be missing; unpack it, or move it away")
    if suffix in _OTHER_ROWS | _ARCHIVES or (suffix == ".json" and not _is_object(path)):
        raise UserError(f"{path}: is not Parquet, and its rows would be missing; write it as Parquet, or move it away")
    with path.open("rb") as file:
        magic = file.read(8)
    if magic.startswith(_MAGIC) and suffix:
        raise UserError(f"{path}: is Parquet, but not by its name; rename it to *.parquet, or move it away")
    if magic.startswith(_OTHER_MAGICS) and not suffix:
        raise UserError(f"{path}: is not Parquet, and its rows would be missing; write it as Parquet, or move it away")
    return magic.startswith(_MAGIC)


def _is_object(path: Path) -> bool:
    """Whether a JSON file is one object, which is about something, and not rows."""
    if path.stat().st_size > _MOST_JSON_BYTES:
        return False
    try:
        return isinstance(json.loads(path.read_bytes()), dict)
    except (ValueError, RecursionError):
        return False


def _refuse_table(folder: Path) -> None:
    """Raises a `UserError` for a folder in which not every Parquet file counts."""
    kind = next((kind for name, kind in _LOGS.items() if is_folder(folder / name)), None)
    about = folder / "metadata"
    if kind is None and (is_there(about / "version-hint.text") or matching(about, "*.metadata.json")):
        kind = "an Iceberg table"
    if kind is not None:
        raise UserError(
            f"{folder}: is {kind}, whose log says which files count; write its present rows as plain Parquet files"
        )
