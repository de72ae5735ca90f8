"""What a person is told about rows and files that cannot be used: where the first is, how many, and what would help.

A setting that leaves rows out is named only where it keeps most of the log, and with what it would leave out.
"""

from collections.abc import Sequence
from typing import TYPE_CHECKING

from data_pipeline.key_range import identity_features
from data_pipeline.transforms import BAD_ROW_REASONS
from rankmixer_dist.schema import Schema

if TYPE_CHECKING:
    from data_pipeline.stages import ReadReport


def count_bad_rows(reports: Sequence["ReadReport"]) -> tuple[int, int]:
    """Bad rows, and these and the good ones together."""
    bad = sum(report.set_aside[reason] for report in reports for reason in BAD_ROW_REASONS)
    return bad, bad + sum(report.good_rows for report in reports)


def bad_rows(reports: Sequence["ReadReport"], schema: Schema) -> str | None:
    """One line about all bad rows, None where there are none."""
    first = next((report.first_bad for report in reports if report.first_bad), None)
    if first is None:
        return None
    bad, rows = count_bad_rows(reports)
    where = f"{first.file}: row {first.row} (from 0)"
    advice = ["mend them", *_unknown_labels(reports, schema), *_small_tables(reports, schema)]
    if 2 * bad <= rows:
        advice.append("set data.on_bad_row=set_aside, which leaves them out")
    return (
        f"{where}: {first.reason}: column {first.column!r} is {first.value}; {bad:,} of {rows:,} rows are bad; "
        f"{', or '.join(advice)}"
    )


def _unknown_labels(reports: Sequence["ReadReport"], schema: Schema) -> list[str]:
    """What to do about labels that are null or NaN."""
    rows = sum(report.in_splits for report in reports)
    advice = []
    for task, column in schema.label_columns().items():
        unknown = sum(report.unknown_labels[column] for report in reports)
        if unknown and unknown == rows:
            advice.append(f"leave task {task} out: none of its labels is known")
        elif unknown:
            keeps = f"which keeps the {unknown:,} rows without {column!r}"
            advice.append(f"set features.tasks.{task}.unknown=mask, {keeps}")
    return advice


def _small_tables(reports: Sequence["ReadReport"], schema: Schema) -> list[str]:
    """What to do about ids that an identity table has no row for."""
    columns = schema.raw_columns()
    advice: dict[str, str] = {}
    for feature, table in identity_features(schema).items():
        beyond = sum(report.beyond_table[feature] for report in reports)
        if beyond:
            keeps = f"which keeps the {beyond:,} rows with a higher {columns.get(feature, feature)!r}"
            advice.setdefault(table, f"raise features.tables.{table}.rows, {keeps}")
    return [*advice.values()]


def unreadable(problems: Sequence[str], *, lost: int, of: int, what: str) -> str:
    """One line about what cannot be read, `lost` of so many files or rows."""
    more = f" (and {len(problems) - 1} more)" if len(problems) > 1 else ""
    if 2 * lost > of:
        return (
            f"{problems[0]}{more}; {lost:,} of {of:,} {what} cannot be read, which is too much to leave out: mend them"
        )
    skip = f"set data.on_unreadable_file=skip, which leaves out {lost:,} of {of:,} {what}"
    return f"{problems[0]}{more}; mend {'them' if more else 'it'} or {skip}"
