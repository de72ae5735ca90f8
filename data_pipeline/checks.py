"""What can be said to be wrong before any work starts."""

import re
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import pyarrow as pa

from data_pipeline import kinds
from data_pipeline.groups import group_fields, user_side
from data_pipeline.manifest import MANIFEST_NAME, Manifest, check_tables, load_manifest, verify_checksums
from data_pipeline.sources import ROW_HASH, Source
from data_pipeline.sources.parquet_log import other_type
from data_pipeline.transforms import has_truth
from rankmixer_dist.config import GroupConfig, RunConfig
from rankmixer_dist.errors import UserError, nearest
from rankmixer_dist.schema import (
    ROW_ID,
    TIMESTAMP,
    USER_ID,
    EventColumn,
    EventIds,
    EventTimes,
    Feature,
    IdFeature,
    MultiIdFeature,
    NumericFeature,
    Schema,
)
from rankmixer_dist.there import is_folder, is_there


def check_columns(schema: Schema, source: Source, group: GroupConfig | None = None) -> None:
    """Checks that every feature and label can be made from the source's columns, and none from the future.

    Raises:
        UserError: a column is missing (the nearest one is named) or of a type that does not fit, a feature is made from
            a label, an outcome or a column that leaks the future, or rows are grouped by one; or a name is that of a
            column that grouped rows have.
    """
    names = source.names()
    for name in (ROW_ID, USER_ID, TIMESTAMP):
        _require(names, name, "every row", source)
    _fits(USER_ID, source, "user_id", lambda kind: None if kinds.is_id(kind) else "integers or strings are needed")
    _fits(TIMESTAMP, source, "timestamp", lambda kind: None if kinds.is_moment(kind) else "a time is needed")
    labels = schema.label_columns()
    truth = source.truth_columns if has_truth(schema, source.truth_columns) else {}
    for task, column in labels.items():
        for needed in (column, truth.get(column, column)):
            _require(names, needed, f"task {task}", source)
            _fits(needed, source, f"task {task}", lambda kind: _not_number(kind, "a label is a number, 0 or 1"))
    for name, column in schema.raw_columns().items():
        _known_beforehand(column, f"feature {name}", labels, source)
        _fits(column, source, f"feature {name}", partial(_misfit, schema.features[name]))
    for name, sequence in schema.sequences.items():
        for column, used in sequence.raw_columns().items():
            for raw in used:
                _known_beforehand(raw, f"sequence {name}", labels, source)
                _fits(raw, source, f"sequence {name}", partial(_event_misfit, sequence.columns[column]))
    if group is not None:
        _known_beforehand(group.by, "data.group.by", labels, source)
        _fits(group.by, source, "data.group.by", lambda kind: None if kinds.is_id(kind) else "ids are needed")
        if not schema.user_side():
            raise UserError("data.group: no feature has `scope: user`, so rows of a group share nothing; declare some")
        taken = {field.name for field in group_fields(user_side(schema))}
        for kind, declared in (("feature", schema.features), ("sequence", schema.sequences)):
            for name in taken.intersection(declared):
                raise UserError(f"{kind} {name}: grouped rows have a column of this name; choose another")


def _known_beforehand(column: str, owner: str, labels: Mapping[str, str], source: Source) -> None:
    """Refuses a column that is not there, or that nobody knows before the row is shown."""
    if column in labels.values():
        raise UserError(f"{owner}: column {column!r} is the label of a task, so it can never be a feature")
    if column in source.outcome_columns:
        raise UserError(f"{owner}: column {column!r} is an outcome, known only after the row was shown")
    if column in source.leaking_columns or column in source.truth_columns.values():
        raise UserError(f"{owner}: column {column!r} holds the future, so it can never be a feature")
    if column in source.flags or column in (ROW_ID, ROW_HASH):
        raise UserError(f"{owner}: column {column!r} is the pipeline's own mark, not a feature")
    _require(source.names(), column, owner, source)


def check_names(config: RunConfig) -> None:
    """Raises a `UserError` for a split whose name cannot be part of a file name."""
    for name in config.data.splits:
        if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9_.-]*", name):
            raise UserError(f"data.splits: {name!r} names shard files; use letters, digits and _.- only")


def standing_manifest(folder: Path, prepared_from: dict[str, Any], schema: Schema, *, verify: bool) -> Manifest | None:
    """The manifest of a folder that already holds exactly this prepared data, None where nothing stands there.

    Raises:
        UserError: the folder holds anything else, or its shards have changed. It is never overwritten.
    """
    if not is_there(folder) or (is_folder(folder) and not any(folder.iterdir())):
        return None
    advice = "delete or rename it, or set data.prepared to another folder"
    if not is_there(folder / MANIFEST_NAME):
        raise UserError(f"{folder}: exists, but holds no data prepared by this version; {advice}")
    try:
        manifest = load_manifest(folder)
        for key in {**prepared_from, **manifest.prepared_from}:
            was, now = manifest.prepared_from.get(key), prepared_from.get(key)
            if was != now:
                raise UserError(f"{folder}: was prepared from other input: {key} was {was}, is {now}")
        check_tables(folder, manifest, schema)
        if verify:
            verify_checksums(folder, (shard for shards in manifest.splits.values() for shard in shards))
    except UserError as error:
        raise UserError(f"{error}; that folder is never overwritten, so {advice}") from error
    return manifest


def _require(names: Sequence[str], column: str, owner: str, source: Source) -> None:
    if column not in names:
        raise UserError(f"{owner}: source {source.name} has no column {column!r}{nearest(column, names)}")


def _fits(column: str, source: Source, owner: str, problem_of: Callable[[pa.DataType], str | None]) -> None:
    """Refuses a column that is of a type that does not fit, in any file; names the file, and one of another type."""
    found = source.types().get(column)
    for kind in found or [source.schema().field(column).type]:
        problem = None if kinds.is_null(kind) else problem_of(kind)
        if problem is None:
            continue
        where = f" in {found[kind]}{other_type(found, kind)}" if found and len(found) > 1 else ""
        raise UserError(f"{owner}: column {column!r} is {kind}{where}; {problem}")


def _misfit(feature: Feature, kind: pa.DataType) -> str | None:
    """Why a column of type `kind` cannot become `feature`, or None."""
    if isinstance(feature, NumericFeature):
        return _not_number(kind, "a numeric feature needs numbers")
    if isinstance(feature, IdFeature):
        if feature.boundaries is not None:
            return _not_number(kind, "boundaries need numbers")
        return None if kinds.is_id(kind) else "an id feature needs integers or strings"
    if isinstance(feature, MultiIdFeature) and feature.separator is not None:
        return None if kinds.is_string(kind) else "`separator` needs strings"
    if not kinds.is_list(kind):
        return "a list of ids is needed" + (" (or set `separator`)" if kinds.is_string(kind) else "")
    return None if kinds.is_id(kind.value_type) else "a list of integers or strings is needed"


def _event_misfit(column: EventColumn, kind: pa.DataType) -> str | None:
    """Why a column of type `kind` cannot become a column of events, or None."""
    if not kinds.is_list(kind):
        return "a list with an item an event is needed"
    item = kind.value_type
    if isinstance(column, EventIds):
        return None if kinds.is_id(item) else "a list of integers or strings is needed"
    if isinstance(column, EventTimes):
        return None if kinds.is_moment(item) else "a list of times is needed"
    return None if kinds.is_number(item) or kinds.is_null(item) else "a list of numbers is needed"


def _not_number(kind: pa.DataType, problem: str) -> str | None:
    return None if kinds.is_number(kind) else problem
