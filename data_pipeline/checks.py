"""What can be said to be wrong before any work starts."""

import re
from pathlib import Path
from typing import Any

import pyarrow as pa

from data_pipeline.manifest import MANIFEST_NAME, Manifest, load_manifest, verify_checksums
from data_pipeline.sources import ROW_HASH, Source
from rankmixer_dist.config import RunConfig
from rankmixer_dist.errors import UserError, nearest
from rankmixer_dist.schema import (
    ROW_ID,
    TIMESTAMP,
    USER_ID,
    Feature,
    IdFeature,
    MultiIdFeature,
    NumericFeature,
    Schema,
)


def check_columns(schema: Schema, source: Source) -> None:
    """Checks that every feature and label can be made from the source's columns, and none from the future.

    Raises:
        UserError: a column is missing (the nearest one is named) or of a type that does not fit, or a feature is made
            from an outcome or a column that leaks the future.
    """
    raw = source.schema()
    for name in (ROW_ID, USER_ID, TIMESTAMP):
        if name not in raw.names:
            raise UserError(f"source {source.name}: its rows have no {name!r} column{nearest(name, raw.names)}")
        kind = raw.field(name).type
        if not pa.types.is_integer(kind) and not (name == USER_ID and _is_text(kind)):
            raise UserError(f"source {source.name}: column {name!r} is {kind}, which cannot be a {name}")
    for task, column in schema.label_columns().items():
        _require(raw, column, f"task {task}", source)
        if not _is_number(raw.field(column).type):
            raise UserError(f"task {task}: column {column!r} is {raw.field(column).type}; a label is a number, 0 or 1")
    for name, feature in schema.features.items():
        column = feature.column or name
        if column in source.outcome_columns:
            raise UserError(f"feature {name}: column {column!r} is an outcome, known only after the row was shown")
        if column in source.leaking_columns:
            raise UserError(f"feature {name}: column {column!r} holds the future, so it can never be a feature")
        if column in source.flags or column in (ROW_ID, ROW_HASH):
            raise UserError(f"feature {name}: column {column!r} is the pipeline's own mark, not a feature")
        _require(raw, column, f"feature {name}", source)
        problem = _misfit(raw.field(column).type, feature, schema)
        if problem:
            raise UserError(f"feature {name}: column {column!r} is {raw.field(column).type}; {problem}")


def check_names(config: RunConfig) -> None:
    """Raises a `UserError` for a split whose name cannot be part of a file name."""
    for name in config.data.splits:
        if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9_.-]*", name):
            raise UserError(f"data.splits: {name!r} names shard files; use letters, digits and _.- only")


def standing_manifest(folder: Path, prepared_from: dict[str, Any], *, verify: bool) -> Manifest | None:
    """The manifest of a folder that already holds exactly this prepared data, None where nothing stands there.

    Raises:
        UserError: the folder holds anything else, or its shards have changed. It is never overwritten.
    """
    if not folder.exists() or (folder.is_dir() and not any(folder.iterdir())):
        return None
    advice = "delete or rename it, or set data.prepared to another folder"
    if not (folder / MANIFEST_NAME).exists():
        raise UserError(f"{folder}: exists, but holds no data prepared by this version; {advice}")
    try:
        manifest = load_manifest(folder)
        for key in prepared_from:
            was = manifest.prepared_from.get(key)
            if was != prepared_from[key]:
                raise UserError(f"{folder}: was prepared from other input: {key} was {was}, is {prepared_from[key]}")
        if verify:
            verify_checksums(folder, (shard for shards in manifest.splits.values() for shard in shards))
    except UserError as error:
        raise UserError(f"{error}; that folder is never overwritten, so {advice}") from error
    return manifest


def _require(raw: pa.Schema, column: str, owner: str, source: Source) -> None:
    if column not in raw.names:
        raise UserError(f"{owner}: source {source.name} has no column {column!r}{nearest(column, raw.names)}")


def _misfit(kind: pa.DataType, feature: Feature, schema: Schema) -> str | None:
    """Why a column of type `kind` cannot become `feature`, or None."""
    if pa.types.is_dictionary(kind):
        kind = kind.value_type
    if isinstance(feature, NumericFeature):
        return None if _is_number(kind) else "a numeric feature needs numbers"
    identity = schema.tables[feature.table].ids == "identity"
    if isinstance(feature, IdFeature):
        if feature.boundaries is not None:
            return None if _is_number(kind) else "boundaries need numbers"
        if identity and not _is_number(kind):
            return f"table {feature.table!r} maps ids by identity, which needs integers"
        return None if _is_number(kind) or _is_text(kind) else "an id feature needs integers or strings"
    if isinstance(feature, MultiIdFeature) and feature.separator is not None:
        if identity:
            return f"joined strings do not go with table {feature.table!r}, which maps ids by identity"
        return None if _is_text(kind) else "`separator` needs strings"
    if not (pa.types.is_list(kind) or pa.types.is_large_list(kind) or pa.types.is_fixed_size_list(kind)):
        return "a list of ids is needed" + (" (or set `separator`)" if _is_text(kind) else "")
    item = kind.value_type
    if identity and not pa.types.is_integer(item):
        return f"table {feature.table!r} maps ids by identity, which needs a list of integers"
    return None if pa.types.is_integer(item) or _is_text(item) else "a list of integers or strings is needed"


def _is_number(kind: pa.DataType) -> bool:
    return pa.types.is_integer(kind) or pa.types.is_floating(kind) or pa.types.is_boolean(kind)


def _is_text(kind: pa.DataType) -> bool:
    return pa.types.is_string(kind) or pa.types.is_large_string(kind)
