"""Raw logs, one module a dataset, each giving the same kind of table."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import pyarrow as pa

from rankmixer_dist.config import KuaiRandSource, SyntheticSource

ROW_HASH = "row_hash"
"""Raw int64 column: content hash of all log columns, where a source says that exact duplicates are dropped."""

RawTypes = Mapping[str, Mapping[pa.DataType, Path]]
"""Raw column -> the types that files hold it in, each with the first such file in the order of names."""

FILE_INDEX_SHIFT = 40
"""`row_id` is file index << 40 | row in file: a million million rows a file, eight million files."""


class UnreadableError(Exception):
    """A file, or a row group of one, that is damaged; `str()` names the file and what is wrong with it."""


@dataclass(frozen=True)
class Unit:
    """The smallest piece of raw log that is read at once: one row group of one file.

    A row's `row_id` is `file_index << FILE_INDEX_SHIFT | its row within the file`; `first_row` is the unit's first one.
    `unreadable` says what is wrong with a file whose footer cannot be read; such a unit stands for the whole file.
    """

    path: Path
    file_index: int
    row_group: int
    first_row: int
    rows: int
    unreadable: str | None = None


class Source(Protocol):
    """Raw logs that the pipeline can read, and what it must know about their columns.

    Attributes:
        name: Name for messages and the manifest.
        outcome_columns: Raw columns known only after the row was shown; labels are made from them, features never.
        leaking_columns: Further raw columns that hold the future and can never become a feature.
        time_column: Raw column that `timestamp` is read from.
        truth_columns: Label column -> raw column of its true probability, where known.
        drops_duplicates: `read` gives a `row_hash`, and all but the first of rows with equal timestamp and hash go.
        flags: Boolean raw columns to count into the manifest's notes -> what a set one means.
    """

    name: str
    outcome_columns: frozenset[str]
    leaking_columns: frozenset[str]
    time_column: str
    truth_columns: Mapping[str, str]
    drops_duplicates: bool
    flags: Mapping[str, str]

    def schema(self) -> pa.Schema:
        """Raw joined columns that `read` gives, each with a type that can hold what any file has in it."""
        ...

    def names(self) -> list[str]:
        """All raw joined columns that features and labels could be made from."""
        ...

    def types(self) -> RawTypes:
        """Of the columns of `schema` that come from files of a log; the others have the type that stands there."""
        ...

    def units(self) -> list[Unit]:
        """All units, files in sorted name order."""
        ...

    def fingerprint(self) -> str:
        """Changes when the content of a file that the source reads changes."""
        ...

    def side_tables(self) -> dict[str, pa.Table]:
        """Small tables to join, read once and given to every `read`."""
        ...

    def read(self, unit: Unit, side_tables: Mapping[str, pa.Table]) -> pa.Table:
        """Raw joined columns of a unit in the types of its file, `row_id`, `user_id` and `timestamp` among them.

        Raises:
            UnreadableError: the unit's bytes are damaged.
        """
        ...


def open_source(config: SyntheticSource | KuaiRandSource, columns: Iterable[str]) -> Source:
    """The source that a config's `source` section describes, to read the raw `columns` and what it needs itself.

    Raises:
        UserError: its folder or one of its files is missing, or a file lacks a column that the source needs.
    """
    from data_pipeline.sources.kuairand import KuaiRandLog
    from data_pipeline.sources.synthetic import SyntheticLog

    if isinstance(config, SyntheticSource):
        return SyntheticLog(config, columns)
    return KuaiRandLog(config, columns)
