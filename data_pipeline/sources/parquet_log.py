"""Raw logs that are Parquet files of one folder: listing, footers, row groups, fingerprints."""

import hashlib
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from data_pipeline import kinds
from data_pipeline.sources import FILE_INDEX_SHIFT, Unit, UnreadableError
from rankmixer_dist.errors import UserError, nearest, one_line
from rankmixer_dist.schema import ROW_ID
from rankmixer_dist.there import is_file, is_folder, is_there, matching

_MAX_FOOTER_BYTES = 1 << 26  # a damaged length must not make the fingerprint read a whole log


class ParquetLog:
    """The `log_*.parquet` files of a folder, footers read once; each file is read in its own types.

    Args:
        columns: The columns to read; one that no file has is left out.
        others: Read all other columns too, null where a file lacks one.

    Attributes:
        names: Columns that any file has, those to read or not.
        types: Column to read -> the types that files hold it in, each with the first such file. A file without rows
            has no say, unless no file has any.

    Raises:
        UserError: the folder is missing, holds no such file, or a file lacks one of `columns` that others have, or has
            a column to read twice.
    """

    def __init__(self, folder: Path, columns: Iterable[str], *, others: bool = False) -> None:
        self.paths = list_files(folder, "log_*.parquet")
        self._footers = read_footers(self.paths)
        readable = [(path, f) for path, f in zip(self.paths, self._footers, strict=True) if isinstance(f, Footer)]
        if not readable:
            raise UserError(f"{folder}: none of its {len(self.paths)} log files can be read; {self._footers[0]}")
        telling = [(path, f) for path, f in readable if any(f.rows)] or readable
        first_of = {id(footer.schema): (path, footer.schema) for path, footer in reversed(telling)}
        schemas = sorted(first_of.values(), key=lambda one: one[0].name)
        self.names = list(dict.fromkeys(name for _, schema in schemas for name in schema.names))
        needed = [name for name in self.names if name in set(columns)]
        self.columns = self.names if others else needed
        self.types = _types_of(schemas, self.columns, needed)

    @property
    def schema(self) -> pa.Schema:
        """The columns to read, each with a type that can hold what any file has in it."""
        return pa.schema([(name, kinds.common(found)) for name, found in self.types.items()])

    def __getstate__(self) -> dict[str, Any]:
        """Without what only the driver needs: a task gets its units, whose number grows with the files."""
        return self.__dict__ | {"paths": [], "_footers": []}

    def units(self) -> list[Unit]:
        """One unit a row group, in the order of the files' names; an unreadable file is one unit that says so."""
        units = []
        for index, (path, footer) in enumerate(zip(self.paths, self._footers, strict=True)):
            if isinstance(footer, str):
                units.append(Unit(path, index, row_group=0, first_row=0, rows=0, unreadable=footer))
                continue
            first_row = 0
            for group, rows in enumerate(footer.rows):
                if rows:
                    units.append(Unit(path, index, group, first_row, rows))
                first_row += rows
        return units

    def read(self, unit: Unit) -> pa.Table:
        """The columns of a unit in the types of its file, and its `row_id`.

        Raises:
            UnreadableError: its bytes are damaged.
        """
        if unit.unreadable is not None:
            raise UnreadableError(unit.unreadable)
        try:
            with _open(unit.path) as file:
                table = file.read_row_group(unit.row_group, columns=self.columns, use_threads=False)
        except (OSError, pa.ArrowException) as error:
            raise UnreadableError(
                f"{unit.path}: row group {unit.row_group} cannot be read: {one_line(error)}"
            ) from error
        if table.num_rows != unit.rows:
            raise UnreadableError(f"{unit.path}: row group {unit.row_group} has {table.num_rows} of {unit.rows} rows")
        present = set(table.column_names)
        columns = {name: table[name] if name in present else pa.nulls(unit.rows) for name in self.columns}
        first = (unit.file_index << FILE_INDEX_SHIFT) + unit.first_row
        return pa.table(columns | {ROW_ID: pa.array(np.arange(first, first + unit.rows))})


def _types_of(
    schemas: Iterable[tuple[Path, pa.Schema]], columns: Sequence[str], needed: Sequence[str]
) -> dict[str, dict[pa.DataType, Path]]:
    types: dict[str, dict[pa.DataType, Path]] = {name: {} for name in columns}
    for path, schema in schemas:
        require_columns(path, schema.names, needed)
        for name in columns:
            places = schema.get_all_field_indices(name)
            if len(places) > 1:
                raise UserError(f"{path}: has {len(places)} columns named {name!r}; rename all but one")
            for place in places:
                types[name].setdefault(schema.field(place).type, path)
    return types


def list_files(folder: Path, pattern: str) -> list[Path]:
    """The folder's files that match, sorted by name.

    Raises:
        UserError: there is no such folder, no such file in it, or anything but a file under such a name.
    """
    try:
        if not is_folder(folder):
            raise UserError(f"source.path {folder}: no such folder")
        paths = matching(folder, pattern)
    except OSError as error:
        raise UserError(f"source.path {folder}: cannot be listed ({one_line(error)})") from error
    for path in paths:
        if not is_file(path):  # reading a pipe would wait for ever
            what = "a folder" if is_folder(path) else "no regular file" if is_there(path) else "a link to nothing"
            raise UserError(f"{path}: is {what}; move it away")
    if not paths:
        raise UserError(f"source.path {folder}: holds no {pattern}")
    return paths


def require_columns(path: Path, present: Sequence[str], needed: Iterable[str]) -> None:
    """Raises a `UserError` that names the first needed column that a file lacks, and the nearest one it has."""
    for name in needed:
        if name not in present:
            raise UserError(f"{path}: column {name!r} is missing{nearest(name, present)}")


def require_types(
    name: str, found: Mapping[pa.DataType, Path], fits: Callable[[pa.DataType], bool], wanted: str
) -> None:
    """Raises a `UserError` that names a file whose column is of a type that does not fit, and one where it does."""
    for kind, path in found.items():
        if not fits(kind) and not kinds.is_null(kind):
            raise UserError(f"{path}: column {name!r} is {kind}; {wanted} are needed{other_type(found, kind)}")


def other_type(found: Mapping[pa.DataType, Path], kind: pa.DataType) -> str:
    """Where a column is of another type than `kind`, to be added to a message; nothing where it never is."""
    return next((f" (in {path} it is {other})" for other, path in found.items() if other != kind), "")


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


@dataclass(frozen=True)
class Footer:
    """What a file's footer says: rows of its row groups, and its columns."""

    rows: tuple[int, ...]
    schema: pa.Schema


def read_footers(paths: Sequence[Path]) -> list[Footer | str]:
    """Each file's footer, or what is wrong with the file; equal schemas are one object."""
    schemas: dict[bytes, pa.Schema] = {}
    with ThreadPoolExecutor(max_workers=16) as pool:
        return list(pool.map(lambda path: _read_footer(path, schemas), paths))


def _read_footer(path: Path, schemas: dict[bytes, pa.Schema]) -> Footer | str:
    try:
        with _open(path) as file:
            # Not `metadata.schema`, which would keep the metadata in a cycle, and so in memory.
            metadata, schema = file.metadata, file.schema_arrow.remove_metadata()
    except (OSError, pa.ArrowException) as error:
        return f"{path}: not a readable Parquet file: {one_line(error)}"
    rows = tuple(metadata.row_group(group).num_rows for group in range(metadata.num_row_groups))
    return Footer(rows, schemas.setdefault(schema.serialize().to_pybytes(), schema))


def _open(path: Path) -> pq.ParquetFile:
    # Dates beyond the year 2262 do not fit into the nanoseconds that the old int96 is read as by default.
    return pq.ParquetFile(path, coerce_int96_timestamp_unit="ms")
