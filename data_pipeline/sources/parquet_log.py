"""Raw logs that are Parquet files of one folder: listing, footers, row groups, fingerprints."""

import hashlib
from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from data_pipeline.sources import FILE_INDEX_SHIFT, Unit, UnreadableError
from rankmixer_dist.errors import UserError, nearest, one_line
from rankmixer_dist.schema import ROW_ID

_MAX_FOOTER_BYTES = 1 << 26  # a damaged length must not make the fingerprint read a whole log


class ParquetLog:
    """The `log_*.parquet` files of a folder, footers read once.

    Raises:
        UserError: the folder is missing, holds no such file, or a file lacks a column that the others have.
    """

    def __init__(self, folder: Path, pattern: str = "log_*.parquet") -> None:
        self.paths = list_files(folder, pattern)
        self._footers = read_footers(self.paths)
        readable = [(path, f) for path, f in zip(self.paths, self._footers, strict=True) if not isinstance(f, str)]
        if not readable:
            raise UserError(f"{folder}: none of its {len(self.paths)} log files can be read; {self._footers[0]}")
        self.schema: pa.Schema = readable[0][1].schema.to_arrow_schema().remove_metadata()
        for path, footer in readable[1:]:
            require_columns(path, footer.schema.to_arrow_schema().names, self.schema.names)

    def units(self) -> list[Unit]:
        """One unit a row group, in the order of the files' names; an unreadable file is one unit that says so."""
        units = []
        for index, (path, footer) in enumerate(zip(self.paths, self._footers, strict=True)):
            if isinstance(footer, str):
                units.append(Unit(path, index, row_group=0, first_row=0, rows=0, unreadable=footer))
                continue
            first_row = 0
            for group in range(footer.num_row_groups):
                rows = footer.row_group(group).num_rows
                units.append(Unit(path, index, group, first_row, rows))
                first_row += rows
        return units

    def read(self, unit: Unit) -> pa.Table:
        """All log columns of a unit and its `row_id`.

        Raises:
            UnreadableError: its bytes are damaged.
        """
        if unit.unreadable is not None:
            raise UnreadableError(unit.unreadable)
        try:
            with pq.ParquetFile(unit.path) as file:
                table = file.read_row_group(unit.row_group, columns=self.schema.names, use_threads=False)
            table = table.select(self.schema.names).cast(self.schema)
        except (OSError, pa.ArrowException) as error:
            raise UnreadableError(
                f"{unit.path}: row group {unit.row_group} cannot be read: {one_line(error)}"
            ) from error
        first = (unit.file_index << FILE_INDEX_SHIFT) + unit.first_row
        return table.append_column(ROW_ID, pa.array(np.arange(first, first + unit.rows)))


def list_files(folder: Path, pattern: str) -> list[Path]:
    """The folder's files that match, sorted by name.

    Raises:
        UserError: there is no such folder, or no such file in it.
    """
    if not folder.is_dir():
        raise UserError(f"source.path {folder}: no such folder")
    paths = sorted(folder.glob(pattern), key=lambda path: path.name)
    if not paths:
        raise UserError(f"source.path {folder}: holds no {pattern}")
    return paths


def require_columns(path: Path, present: Sequence[str], needed: Iterable[str]) -> None:
    """Raises a `UserError` that names the first needed column that a file lacks, and the nearest one it has."""
    for name in needed:
        if name not in present:
            raise UserError(f"{path}: column {name!r} is missing{nearest(name, present)}")


def fingerprint(logs: Iterable[Path], side_files: Iterable[Path]) -> str:
    """Hash over names, sizes and Parquet footers of the logs, and over names and bytes of the (small) side files."""
    digest = hashlib.blake2b(digest_size=16)
    for path in logs:
        size = path.stat().st_size
        with path.open("rb") as file:
            # The footer holds every column chunk's offsets, sizes and statistics; its length is 8 bytes before the end.
            file.seek(max(0, size - 8))
            footer_bytes = int.from_bytes(file.read(4), "little")
            file.seek(max(0, size - 8 - min(footer_bytes, _MAX_FOOTER_BYTES)))
            digest.update(f"{path.name}\0{size}\0".encode() + file.read())
    for path in side_files:
        digest.update(f"{path.name}\0".encode() + path.read_bytes())
    return digest.hexdigest()


def read_footers(paths: Sequence[Path]) -> list[pq.FileMetaData | str]:
    """Each file's footer, or what is wrong with the file."""
    with ThreadPoolExecutor(max_workers=16) as pool:
        return list(pool.map(_read_footer, paths))


def _read_footer(path: Path) -> pq.FileMetaData | str:
    try:
        return pq.read_metadata(path)
    except (OSError, pa.ArrowException) as error:
        return f"{path}: not a readable Parquet file: {one_line(error)}"
