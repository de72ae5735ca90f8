"""The manifest of prepared data: which rows lie where, and proof that they are the ones that were written."""

import json
import math
from collections import Counter
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import pyarrow as pa
from pydantic import Field, NonNegativeFloat, NonNegativeInt, PositiveInt, ValidationError, model_validator

from data_pipeline.events import events_type
from data_pipeline.key_range import KeyRange, identity_features, table_misfit
from rankmixer_dist.checksum import file_checksum, file_inside, json_checksum, open_regular
from rankmixer_dist.errors import UserError, one_line
from rankmixer_dist.identity import first_difference
from rankmixer_dist.schema import (
    LABEL_PREFIX,
    ROW_ID,
    TIMESTAMP,
    TRUTH_PREFIX,
    USER_ID,
    IdFeature,
    NumericFeature,
    Schema,
    Strict,
)
from rankmixer_dist.small_file import write_text

MANIFEST_NAME = "manifest.json"
# Of the shards' bytes too: 3 = the manifest carries a checksum of itself, and the shards one of every page; 4 = an id
# has the same row whether a string or an integer holds it; 5 = shards hold keys in the place of rows of tables.
FORMAT_VERSION = 5
GROUPED_FORMAT_VERSION = 6
"""Of rows that hold the user side once a group: a reader of 5 would take it for missing in the others."""


class Shard(Strict):
    """A Parquet file of rows, cut into row groups of `Manifest.row_group_rows`, the last one shorter. Rows stand in the
    order of time, or where they are grouped in that of `groups`.

    `labelled`, `positives`: by task, the rows whose label is known, and those where it is 1.
    """

    path: str = Field(pattern=r"^[^\x00-\x1f]+$")
    rows: PositiveInt
    row_groups: PositiveInt
    first_timestamp: int
    last_timestamp: int
    labelled: dict[str, NonNegativeInt]
    positives: dict[str, NonNegativeInt]
    checksum: str

    @model_validator(mode="after")
    def _check(self) -> "Shard":
        if self.labelled.keys() != self.positives.keys():
            raise ValueError(f"{self.path}: labelled and positives are of different tasks")
        for task, labelled in self.labelled.items():
            if not self.positives[task] <= labelled <= self.rows:
                raise ValueError(f"{self.path}: {self.positives[task]} of {labelled} of {self.rows} rows for {task}")
        return self


class NumericStatistics(Strict):
    """Mean and standard deviation of a numeric feature's present values in `data.statistics_of`; `count` of them.

    The values are those of the prepared column, after its transform. A constant has `std` 0; of no value, all are 0.
    """

    count: NonNegativeInt
    mean: float
    std: NonNegativeFloat


class GroupedRows(Strict):
    """How rows were grouped (`config.data.GroupConfig`), what they share (`groups.UserSide`), and by split, how many
    groups there are."""

    by: str
    window: str
    user_side: dict[str, PositiveInt | None]
    groups: dict[str, NonNegativeInt]


class Manifest(Strict):
    """Everything a reader needs to know before it opens a shard.

    `raw_rows` = rows of all splits + rows set aside by reason. `prepared_from` is the part of the config, and the
    fingerprint of the raw files, that decide the shards' bytes. `meaning` is what `schema_hash` is the checksum of.
    `raw_types` are the types that files hold each raw column in. `ids_per_row` is, by feature that has not one id a
    row, their mean number in `data.statistics_of`, where those that a group shares are counted once;
    `ids_read_per_row` is how many of them a row of a group has, each row counted. `key_ranges` is, by feature on an
    identity table, what its ids were. `group` is None of rows without groups.
    """

    format_version: int = FORMAT_VERSION
    source: str
    schema_hash: str
    meaning: dict[str, Any] = {}
    columns: dict[str, str]
    row_group_rows: PositiveInt
    splits: dict[str, list[Shard]]
    numerics: dict[str, NumericStatistics]
    ids_per_row: dict[str, NonNegativeFloat] = {}
    ids_read_per_row: dict[str, NonNegativeFloat] = {}
    key_ranges: dict[str, KeyRange] = {}
    raw_rows: int
    set_aside: dict[str, int]
    notes: list[str] = []
    has_truth: bool = False
    raw_types: dict[str, list[str]] = {}
    prepared_from: dict[str, Any] = {}
    group: GroupedRows | None = None

    @model_validator(mode="after")
    def _check(self) -> "Manifest":
        shards = [shard for of_split in self.splits.values() for shard in of_split]
        for shard in shards:
            if shard.row_groups != -(-shard.rows // self.row_group_rows):
                raise ValueError(f"{shard.path}: {shard.rows:,} rows are not {shard.row_groups:,} row groups")
        named = Counter(shard.path for shard in shards)
        if len(named) < len(shards):
            raise ValueError(f"{named.most_common(1)[0][0]} is named twice")
        if (self.group is not None) != (self.format_version == GROUPED_FORMAT_VERSION):
            raise ValueError(f"rows of format {self.format_version} have groups, or those of another have none")
        return self

    def rows(self, split: str) -> int:
        """Rows of a split over all its shards."""
        return sum(shard.rows for shard in self.splits[split])

    def rows_per_group(self, split: str) -> float:
        """How many rows of a split share a user side, in the mean."""
        return self.rows(split) / self.group.groups[split] if self.group is not None else 1.0

    def ids_of_rows(self, *, shared: bool) -> dict[str, float]:
        """Mean ids a row, by feature that has not one: those that a group shares counted once, or by each row of it."""
        return self.ids_per_row if shared else self.ids_per_row | self.ids_read_per_row

    def span(self, split: str) -> tuple[int, int]:
        """The first and the last timestamp of a split that has rows."""
        shards = self.splits[split]
        return min(shard.first_timestamp for shard in shards), max(shard.last_timestamp for shard in shards)

    def base_rate(self, split: str, task: str) -> float:
        """Share of a split's labelled rows whose label is 1; NaN where no label is known."""
        labelled = sum(shard.labelled[task] for shard in self.splits[split])
        return sum(shard.positives[task] for shard in self.splits[split]) / labelled if labelled else math.nan

    def write(self, folder: Path) -> None:
        """Writes `manifest.json`, complete or not at all, with a checksum of its own content under `checksum`."""
        content = self.model_dump(mode="json")
        text = json.dumps({"checksum": json_checksum(content), **content}, indent=1) + "\n"
        write_text(folder / MANIFEST_NAME, text)


def prepared_columns(schema: Schema, *, has_truth: bool) -> pa.Schema:
    """Columns of a prepared row, in file order: numerics float32; ids int64, null where missing; bags and sequences
    list<int64> without nulls; events lists of structs (`events.events_type`).

    An id is its key (`hashing`), or the index of its bucket.
    """
    fields = [pa.field(name, pa.int64(), nullable=False) for name in (ROW_ID, USER_ID, TIMESTAMP)]
    # NaN is an unknown label.
    fields += [pa.field(LABEL_PREFIX + task, pa.float32(), nullable=False) for task in schema.tasks]
    if has_truth:
        fields += [pa.field(TRUTH_PREFIX + task, pa.float32(), nullable=False) for task in schema.tasks]
    for name, feature in schema.features.items():
        if isinstance(feature, NumericFeature):
            fields.append(pa.field(name, pa.float32(), nullable=False))  # NaN is a missing value
        elif isinstance(feature, IdFeature):
            fields.append(pa.field(name, pa.int64()))
        else:
            item = pa.field("item", pa.int64(), nullable=False)
            fields.append(pa.field(name, pa.list_(item), nullable=False))
    fields += [pa.field(n, events_type(sequence), nullable=False) for n, sequence in schema.sequences.items()]
    return pa.schema(fields)


def schema_hash(schema: Schema) -> str:
    """Checksum of `prepared_meaning`, to which the order of keys is nothing."""
    return json_checksum(prepared_meaning(schema))


def prepared_meaning(schema: Schema) -> dict[str, Any]:
    """What of a schema decides the bytes of prepared rows; all else is applied to them when they are read.

    Of a table that is whether its ids are hashed or kept in order, which says what a raw column may hold. Its rows,
    width, salt and name are no part of it; how many rows an identity table had is in `Manifest.key_ranges`.
    """
    features = {}
    for name, feature in schema.features.items():
        features[name] = feature.model_dump(mode="json", exclude={"table", "group", "scope", "pooling", "query"})
        features[name]["column"] = feature.column or name
        if name in identity_features(schema):
            features[name]["ids"] = "identity"
    columns = schema.label_columns()
    tasks = {name: {"column": columns[name], "unknown": task.unknown} for name, task in schema.tasks.items()}
    sequences = {}
    for name, sequence in schema.sequences.items():
        sequences[name] = sequence.model_dump(mode="json", exclude={"scope": True, "columns": {"__all__": {"table"}}})
        for column in sequence.columns:
            if f"{name}.{column}" in identity_features(schema):
                sequences[name]["columns"][column]["ids"] = "identity"
    return {"features": features, "tasks": tasks, **({"sequences": sequences} if sequences else {})}


def load_manifest(folder: Path) -> Manifest:
    """The manifest of `folder`, as it was written.

    Raises:
        UserError: there is none, it cannot be read, is another version's, or was changed after it was written.
    """
    path = folder / MANIFEST_NAME
    try:
        with open_regular(path) as file:
            content = json.load(file)
    except FileNotFoundError as error:
        raise UserError(f"{path}: no such file; run launch/preprocess.py with this config first") from error
    except (OSError, ValueError, RecursionError) as error:
        raise UserError(f"{path}: cannot be read as JSON ({one_line(error)}); prepare the data again") from error
    if not isinstance(content, dict):
        raise UserError(f"{path}: not a manifest but {type(content).__name__}; prepare the data again")
    version = content.get("format_version")
    if version not in (FORMAT_VERSION, GROUPED_FORMAT_VERSION):
        raise UserError(f"{path}: format version {version!r}, this is {FORMAT_VERSION}; prepare the data again")
    checksum = content.pop("checksum", None)
    if checksum != json_checksum(content):
        raise UserError(f"{path}: its checksum is not that of its content; the file changed, prepare the data again")
    try:
        return Manifest.model_validate(content)
    except ValidationError as error:
        problem = error.errors()[0]["msg"].removeprefix("Value error, ")
        raise UserError(f"{path}: not a manifest of this version ({problem}); prepare the data again") from error


def read_manifest(folder: Path, schema: Schema) -> Manifest:
    """The manifest of `folder`, refused when it was prepared for another schema.

    Raises:
        UserError: `load_manifest` refuses it, its schema hash is another one's, or a table cannot take its ids.
    """
    manifest, numerics = load_manifest(folder), schema.of_kind(NumericFeature).keys()
    if manifest.schema_hash != schema_hash(schema):
        difference = first_difference(manifest.meaning, prepared_meaning(schema)) if manifest.meaning else None
        key, was, now = difference or ("its checksum", manifest.schema_hash, schema_hash(schema))
        raise UserError(
            f"{folder / MANIFEST_NAME}: prepared for another schema: {key} was {was!r} and is {now!r}; run "
            "launch/preprocess.py again or set data.prepared to another folder"
        )
    counted = [shard.labelled.keys() for shards in manifest.splits.values() for shard in shards]
    if any(tasks != schema.tasks.keys() for tasks in counted) or manifest.numerics.keys() != numerics:
        raise UserError(f"{folder / MANIFEST_NAME}: its figures are of other tasks and numbers; prepare the data again")
    check_tables(folder, manifest, schema)
    return manifest


def check_tables(folder: Path, manifest: Manifest, schema: Schema) -> None:
    """Makes sure that the tables of a schema can take the ids that were prepared for its features.

    Raises:
        UserError: one cannot, or the manifest does not tell.
    """
    if manifest.key_ranges.keys() != identity_features(schema).keys():
        raise UserError(f"{folder / MANIFEST_NAME}: its ids are of other features; prepare the data again")
    misfit = table_misfit(manifest.key_ranges, schema)
    if misfit is not None:
        raise UserError(f"{folder / MANIFEST_NAME}: {misfit}")


def verify_checksums(folder: Path, shards: Iterable[Shard]) -> None:
    """Compares every shard's bytes with its checksum.

    Raises:
        UserError: a shard is missing, cannot be read, or its bytes have changed.
    """
    for shard in shards:
        path = folder / shard.path
        try:
            checksum = file_checksum(file_inside(folder, shard.path))
        except FileNotFoundError as error:
            raise UserError(
                f"{path}: the manifest names it, but there is no such file; prepare the data again"
            ) from error
        except OSError as error:
            raise UserError(
                f"{path}: cannot be read ({one_line(error)}); mend that or prepare the data again"
            ) from error
        if checksum != shard.checksum:
            raise UserError(f"{path}: its checksum is not the manifest's; the file changed, prepare the data again")
