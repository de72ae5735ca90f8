"""The columns by which an evaluation is sliced: which value a row has, and what a reader is told of it."""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from functools import partial
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from rankmixer_dist.batch import Batch
from rankmixer_dist.config import RunConfig
from rankmixer_dist.errors import UserError
from rankmixer_dist.metrics import ValueCounts
from rankmixer_dist.parallel.topology import all_gather_objects, failing_together
from rankmixer_dist.schema import USER_ID, USER_SLICES, IdFeature

MAX_SLICES = 1000
"""A column with more values, rows without one aside, is a mistake: each slice is a row of a report."""
_HOUR_MS, _DAY_MS = 3_600_000, 86_400_000
_ACTIVITY = ("none", "low", "middle", "high")
_MISSING = -1
"""Value of a row without an id; that of another is the place of its key among all that occur."""


class CountValues(Protocol):
    """Counts the values of a prepared column in this rank's share of some splits."""

    def __call__(self, splits: Sequence[str], column: str) -> ValueCounts: ...


@dataclass(frozen=True)
class SliceColumn:
    """A column to slice by.

    `values`: of a batch's rows, int64 [B]. `label`: what a value is called, unlike any other's. `legend`: what the
    labels mean, for who reads the figures.
    """

    name: str
    values: Callable[[Batch], NDArray[np.int64]]
    label: Callable[[int], str]
    legend: str


def slice_columns(config: RunConfig, *, trained_on: Sequence[str], count_values: CountValues) -> list[SliceColumn]:
    """The columns of `eval.slices`; all ranks call it.

    Args:
        trained_on: the splits whose rows make a user known.

    Raises:
        UserError: a column has more than 1,000 values in the rows to be scored, buckets, or days in their split, or a
            shard cannot be read.
    """
    columns = []
    users: ValueCounts | None = None
    for name in dict.fromkeys(config.eval.slices):
        feature = config.features.features.get(name)
        if isinstance(feature, IdFeature):
            keys = _keys_that_occur(name, feature, config, count_values)
            columns.append(_feature_column(name, feature, keys, config))
        elif name in USER_SLICES:
            users = users or _of_all_ranks(trained_on, USER_ID, count_values)
            columns.append(_user_column(name, users, trained_on))
        else:
            columns.append(_time_column(name, config))
    return columns


def _of_all_ranks(splits: Sequence[str], column: str, count_values: CountValues) -> ValueCounts:
    mine, total = ValueCounts(), ValueCounts()
    with failing_together():
        mine = count_values(splits, column)
    for part in all_gather_objects(mine):
        total.merge(part)
    return total


def _keys_that_occur(name: str, feature: IdFeature, config: RunConfig, count_values: CountValues) -> NDArray[np.int64]:
    """Ascending, in the rows to be scored; all buckets of a feature with boundaries."""
    if feature.boundaries is not None:
        _require_few(name, buckets := len(feature.boundaries) + 1, "buckets", "give it fewer boundaries")
        return np.arange(buckets)
    found = _of_all_ranks([config.eval.split], name, count_values).values
    _require_few(name, len(found), f"values in the rows of {config.eval.split}", "put them into buckets")
    return found


def _require_few(name: str, number: int, what: str, mend: str) -> None:
    if number > MAX_SLICES:
        raise UserError(
            f"eval.slices {name}: {number:,} {what}, at most {MAX_SLICES:,} get figures of their own; {mend}, or leave "
            "it out"
        )


def _feature_column(name: str, feature: IdFeature, keys: NDArray[np.int64], config: RunConfig) -> SliceColumn:
    column = config.features.sliced_ids(config.eval.slices).index(name)

    def values(batch: Batch) -> NDArray[np.int64]:
        assert batch.keys_BS is not None and batch.known_BS is not None, "the loader was asked for no keys"
        known_B = batch.known_BS[:, column].numpy()
        return np.where(known_B, np.searchsorted(keys, batch.keys_BS[:, column].numpy()), _MISSING)

    raw = feature.column or name
    if feature.boundaries is not None:
        legend = f"buckets of {raw}"
    elif config.features.tables[feature.table].ids == "identity":
        legend = f"values of {raw}"
    else:
        legend = f"values of {raw}; a number that is none of them is the 64-bit hash of a string"
    return SliceColumn(name, values, partial(_id_label, feature.boundaries, keys), legend)


def _id_label(boundaries: Sequence[float] | None, keys: NDArray[np.int64], place: int) -> str:
    if place == _MISSING:
        return "missing"
    return str(keys[place]) if boundaries is None else _bucket(boundaries, place)


def _bucket(boundaries: Sequence[float], bucket: int) -> str:
    """The range of a bucket; a cut point belongs to the bucket above it."""
    if bucket == 0:
        return f"< {_number(boundaries[0])}"
    if bucket == len(boundaries):
        return f"≥ {_number(boundaries[-1])}"
    return f"{_number(boundaries[bucket - 1])} to < {_number(boundaries[bucket])}"


def _number(value: float) -> str:
    """The shortest text that is this number and no other."""
    return str(int(value)) if value.is_integer() else repr(value)


def _user_column(name: str, users: ValueCounts, trained_on: Sequence[str]) -> SliceColumn:
    where = f"in {', '.join(trained_on)}"
    if name == "user_known":
        return SliceColumn(
            name,
            lambda batch: (users.of(batch.user_id_B.numpy()) > 0).astype(np.int64),
            lambda known: "known" if known else "new",
            f"whether the user has rows {where}",
        )
    # Values that occur, so that a reader can say which users they are; the same on every rank.
    low, middle = map(int, np.quantile(users.counts, [1 / 3, 2 / 3], method="inverted_cdf"))
    return SliceColumn(
        name,
        lambda batch: np.searchsorted([1, low + 1, middle + 1], users.of(batch.user_id_B.numpy()), side="right"),
        _ACTIVITY.__getitem__,
        f"the user's rows {where}: low to {low:,}, middle to {middle:,}, high above; about a third of the users each",
    )


def _time_column(name: str, config: RunConfig) -> SliceColumn:
    start = config.data.splits[config.eval.split].start
    offset = start.utcoffset() or timedelta()
    offset_ms = round(offset.total_seconds() * 1000)
    legend = f"of the row's time, at UTC{start:%z}"
    if name == "hour":
        return SliceColumn(
            name,
            lambda batch: (batch.timestamp_B.numpy() + offset_ms) // _HOUR_MS % 24,
            "{:02}".format,
            f"hour {legend}",
        )
    end = config.data.splits[config.eval.split].end
    _require_few(
        name, math.ceil((end - start) / timedelta(days=1)), f"days in {config.eval.split}", "shorten the split"
    )
    return SliceColumn(
        name,
        lambda batch: (batch.timestamp_B.numpy() + offset_ms) // _DAY_MS,
        lambda day: f"{datetime.fromtimestamp(day * _DAY_MS / 1000, UTC):%Y-%m-%d}",
        f"day {legend}",
    )
