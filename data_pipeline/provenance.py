"""What the manifest says of a preparation: what it was made from, figures of its rows, and notes."""

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import pyarrow as pa

from data_pipeline.groups import user_side
from data_pipeline.key_range import KeyRange, identity_features
from data_pipeline.manifest import GroupedRows, schema_hash
from data_pipeline.shards import ShardResult
from data_pipeline.sources import Source
from data_pipeline.stages import ReadReport
from data_pipeline.time_found import TimeFound
from rankmixer_dist.config import RunConfig
from rankmixer_dist.schema import Schema


def made_from(config: RunConfig, source: Source) -> dict[str, Any]:
    """What decides the shards' bytes; where the raw and the prepared folder lie does not."""
    data = config.data
    return {
        "schema_hash": schema_hash(config.features),
        "source": config.source.model_dump(mode="json", exclude={"path"}),
        "raw_files": source.fingerprint(),
        "statistics_of": data.statistics_of,
        "splits": {name: list(split.to_ms()) for name, split in data.splits.items()},
        "row_group_rows": data.row_group_rows,
        "shard_rows": data.shard_rows,
        "on_bad_row": data.on_bad_row,
        "on_unreadable_file": data.on_unreadable_file,
        **({"group": {**data.group.model_dump(), "user_side": [*config.features.user_side()]}} if data.group else {}),
    }


def key_ranges(
    schema: Schema, reports: Sequence[ReadReport], splits: Iterable[Sequence[ShardResult]]
) -> dict[str, KeyRange]:
    """By feature on an identity table, what its ids were."""
    highest = [result.highest for results in splits for result in results]
    return {
        name: KeyRange(
            rows=schema.tables[table].rows,
            beyond=sum(report.beyond_table[name] for report in reports),
            highest=max((found[name] for found in highest if name in found), default=None),
        )
        for name, table in identity_features(schema).items()
    }


def ids_a_row(results: Sequence[ShardResult], counts: Sequence[Mapping[str, int]]) -> dict[str, float]:
    """By feature, the mean of a count of ids over the rows of some shards."""
    rows = sum(result.shard.rows for result in results)
    return {name: sum(count[name] for count in counts) / rows for name in counts[0]}


def grouped_rows(config: RunConfig, splits: Mapping[str, Sequence[ShardResult]]) -> GroupedRows | None:
    """How rows were grouped, None where they are not."""
    group = config.data.group
    if group is None:
        return None
    groups = {split: sum(result.groups for result in results) for split, results in splits.items()}
    return GroupedRows(by=group.by, window=group.window, user_side=dict(user_side(config.features)), groups=groups)


def changed_sides(splits: Iterable[Sequence[ShardResult]]) -> list[str]:
    """How often a column that is declared the user's changes among rows of one id and window."""
    changes = sum((result.changes for results in splits for result in results), Counter())
    return [
        f"{count} rows begin a group because {name}, declared `scope: user`, is not what it was a row before"
        for name, count in sorted(changes.items())
    ]


def raw_types(source: Source) -> dict[str, list[str]]:
    """Raw column -> the types that files hold it in."""
    types = source.types()
    return {field.name: sorted(str(kind) for kind in types.get(field.name, [field.type])) for field in source.schema()}


def notes_of(reports: Sequence[ReadReport], source: Source) -> list[str]:
    """What a reader of the data should know of its raw files."""
    flags = sum((report.flags for report in reports), Counter())
    notes = [f"{flags[name]} {meaning}" for name, meaning in source.flags.items() if flags[name]]
    for kind, path in source.types().get(source.time_column, {}).items():
        if pa.types.is_timestamp(kind) and kind.tz is None:
            notes.append(f"column {source.time_column!r} is {kind} without a time zone, in {path}: taken for UTC")
    far = all_times(reports).far()
    return notes + ([far] if far else []) + [f"skipped: {text}" for report in reports for text in report.unreadable]


def all_times(reports: Sequence[ReadReport]) -> TimeFound:
    """The times that all reading tasks found."""
    found = TimeFound()
    for report in reports:
        found.merge(report.time)
    return found
