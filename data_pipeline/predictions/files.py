"""Which files hold the predictions, and which of their columns mean what; all that footers can tell."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import pyarrow as pa

from data_pipeline import kinds
from data_pipeline.predictions.listing import list_files
from data_pipeline.sources import Unit
from data_pipeline.sources.parquet_log import Footer, read_footers
from rankmixer_dist.errors import UserError, nearest
from rankmixer_dist.schema import LABEL_PREFIX, SCORE_PREFIX, USER_ID

LABEL, SCORE = "label", "score"
"""Columns that are looked for where none are named and there are none of a run's."""


@dataclass(frozen=True)
class ColumnNames:
    """Columns as a person names them; without label and score those of a run, if there are any."""

    user: str = USER_ID
    label: str | None = None
    score: str | None = None
    weight: str | None = None


@dataclass(frozen=True)
class Columns:
    """Columns to read: of the user, of the weight if any, and of each task the pair (label, score)."""

    user: str
    weight: str | None
    tasks: Mapping[str, tuple[str, str]]

    @property
    def names(self) -> list[str]:
        """All of them, each once."""
        pairs = (name for pair in self.tasks.values() for name in pair)
        return list(dict.fromkeys(name for name in (self.user, self.weight, *pairs) if name is not None))


@dataclass(frozen=True)
class Predictions:
    """Scored rows on disk: one unit a row group; `notes` is what has to be told of the files."""

    path: Path
    columns: Columns
    units: tuple[Unit, ...]
    notes: tuple[str, ...] = ()

    @property
    def rows(self) -> int:
        """Rows of all files."""
        return sum(unit.rows for unit in self.units)


def find_predictions(path: Path, names: ColumnNames) -> Predictions:
    """The Parquet file, or all those of the folder and those below it (`list_files`); opens their footers only.

    Raises:
        UserError: as `list_files`; a file that is not readable or lacks a column, a column of a type that does not fit,
            no rows.
    """
    paths, notes = list_files(path)
    footers = read_footers(paths)
    schemas: dict[Path, pa.Schema] = {}
    units: list[Unit] = []
    for index, (file, footer) in enumerate(zip(paths, footers, strict=True)):
        if isinstance(footer, str):
            raise UserError(f"{footer}; write it again or remove it")
        schemas[file] = footer.schema
        units += _units(file, index, footer)
    columns = _choose(names, list(dict.fromkeys(name for schema in schemas.values() for name in schema.names)))
    for file, schema in schemas.items():
        _check(file, schema, columns)
    _check_same_users(schemas, columns.user)
    if not any(unit.rows for unit in units):
        raise UserError(f"{path}: holds no rows")
    return Predictions(path, columns, tuple(unit for unit in units if unit.rows), tuple(notes))


def _units(path: Path, index: int, footer: Footer) -> Iterator[Unit]:
    first_row = 0
    for group, rows in enumerate(footer.rows):
        # In full: a worker may have started elsewhere.
        yield Unit(path.resolve(), index, group, first_row, rows)
        first_row += rows


def _choose(names: ColumnNames, present: list[str]) -> Columns:
    """The columns to read, by those that any file has."""
    tasks: dict[str, tuple[str, str]] = {}
    if names.label is None and names.score is None:
        scored = (name.removeprefix(SCORE_PREFIX) for name in present if name.startswith(SCORE_PREFIX))
        tasks = {task: (LABEL_PREFIX + task, SCORE_PREFIX + task) for task in scored}
    label, score = names.label or LABEL, names.score or SCORE
    return Columns(names.user, names.weight, tasks or {label: (label, score)})


def _check(path: Path, schema: pa.Schema, columns: Columns) -> None:
    """Raises a `UserError` for a column that is missing or not what its values have to be."""
    needed = [("user", columns.user, _is_user, "user ids are integers or strings")]
    for label, score in columns.tasks.values():
        needed.append(("label", label, _is_number, "a label is a number, 0 or 1"))
        needed.append(("score", score, pa.types.is_floating, "a score is a float32 or float64 in [0, 1]"))
    if columns.weight is not None:
        needed.append(("weight", columns.weight, _is_number, "a weight is a number"))
    for what, name, fits, expected in needed:
        if name not in schema.names and any(part.startswith(f"{name}=") for part in path.parent.parts):
            raise UserError(
                f"{path}: only its folder's name has the {what} {name!r}; write a column of it into the file"
            )
        if name not in schema.names:
            raise UserError(f"{path}: has no column {name!r}{nearest(name, schema.names)}; name the {what} by --{what}")
        if schema.names.count(name) > 1:
            raise UserError(f"{path}: has {schema.names.count(name)} columns {name!r}; name another {what} by --{what}")
        kind = schema.field(name).type
        if not fits(kind):
            raise UserError(f"{path}: column {name!r} is {kind}, but {expected}; name the {what} by --{what}")


def _check_same_users(schemas: Mapping[Path, pa.Schema], name: str) -> None:
    """Raises a `UserError` where files write user ids in kinds that cannot be compared."""
    found = {path: _kind_of_user(schema.field(name).type) for path, schema in schemas.items()}
    first = next(iter(found))
    for path, kind in found.items():
        if kind != found[first]:
            raise UserError(f"{path}: column {name!r} holds {kind}, in {first} {found[first]}; write them alike")


def _kind_of_user(kind: pa.DataType) -> str:
    if kinds.is_integer(kind):
        return "unsigned 64-bit integers" if kinds.plain(kind) == pa.uint64() else "integers"
    return "strings"


def _is_user(kind: pa.DataType) -> bool:
    return kinds.is_integer(kind) or kinds.is_text(kind)


def _is_number(kind: pa.DataType) -> bool:
    return pa.types.is_integer(kind) or pa.types.is_floating(kind) or pa.types.is_boolean(kind)
