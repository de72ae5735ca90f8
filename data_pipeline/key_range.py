"""Whether tables of other sizes than data was prepared with can take its ids.

A table of `ids: identity` has a row for each id below its size. Rows with an id above it are set aside when the data
is prepared, so a table of another size may ask for rows that are not there, or lack some for those that are.
"""

from collections.abc import Mapping

from pydantic import Field, NonNegativeInt

from rankmixer_dist.schema import IdFeature, NumericFeature, Schema, Strict


class KeyRange(Strict):
    """The ids of a feature on an identity table, as they were prepared.

    rows: of the table then; an id from rows - 1 on had no row.
    beyond: rows of the splits that were set aside with such an id.
    highest: the highest id in the shards, None without any.
    """

    rows: int = Field(ge=2)
    beyond: NonNegativeInt
    highest: NonNegativeInt | None


def identity_features(schema: Schema) -> dict[str, str]:
    """Features, and columns of events, whose ids are rows of a table in order -> the table."""
    events = {name: table for name, table in schema.event_ids().items() if schema.tables[table].ids == "identity"}
    features = {
        name: feature.table
        for name, feature in schema.features.items()
        if not isinstance(feature, NumericFeature)
        and schema.tables[feature.table].ids == "identity"
        and not (isinstance(feature, IdFeature) and feature.boundaries is not None)
    }
    return features | events


def table_misfit(ranges: Mapping[str, KeyRange], schema: Schema) -> str | None:
    """Why a table cannot take the ids that were prepared for it, and what mends it, in words; None where all can."""
    # Of features that share a table the one with the highest id comes first: it says how many rows are needed.
    highest_first = sorted(identity_features(schema).items(), key=lambda item: -(ranges[item[0]].highest or 0))
    for feature, table in highest_first:
        found, rows = ranges[feature], schema.tables[table].rows
        if found.highest is not None and found.highest > rows - 2:
            needed = found.highest + 2
            return (
                f"table {table!r} has {rows} rows, but feature {feature!r} holds id {found.highest}, which needs "
                f"{needed}: set features.tables.{table}.rows={needed}, or prepare the data again"
            )
        if found.beyond and rows > found.rows:
            return (
                f"table {table!r} has {rows} rows, but had {found.rows} when the data was prepared, for which "
                f"{found.beyond:,} of the log's rows with a higher id of feature {feature!r} were set aside: prepare "
                f"the data again, or set features.tables.{table}.rows={found.rows}"
            )
    return None
