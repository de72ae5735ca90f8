"""What a run's weights mean: the parts that must be alike before one model may use another's weights.

Where the data lies, what a run is called and how fast it learns are no part of it. What a checkpoint's parts hold is in
the config that it keeps; beside it stand their checksums and what the run has taken from its data.
"""

from collections.abc import Callable, Iterable, Mapping
from typing import Any

from pydantic import NonNegativeInt

from rankmixer_dist.checksum import json_checksum
from rankmixer_dist.config import BACKBONES, ModelConfig
from rankmixer_dist.schema import ID_HASH, IdFeature, Schema, Strict

Difference = tuple[str, Any, Any]
"""A key, what stood there and what stands there now."""

ORDERED = ("tables", "groups", "features", "tasks")
"""Mappings of a schema whose order is that of the model's rows and columns, while in YAML it says nothing."""


class NumericScale(Strict):
    """Mean and standard deviation that a numeric feature is standardised with."""

    mean: float
    std: float


class SplitRows(Strict):
    """A split's rows: how many, how they lie in shards, and the checksum of those shards' checksums."""

    rows: NonNegativeInt
    cut: str
    content: str


class Stream(Strict):
    """The rows that a run trains on, in their order.

    made_from: checksum of what decides the prepared rows; empty where that is not known.
    interleave, batch_size: the order depends on the batches where rows are dealt to several lanes, else 0 stands there.
    """

    made_from: str
    splits: dict[str, SplitRows]
    row_group_rows: int
    shuffle: str
    seed: int
    interleave: int = 1
    batch_size: int = 0

    def difference(self, now: "Stream") -> str | None:
        """What makes `now` another stream, in words, or None. The order of columns in a shard does not."""
        for split, then in self.splits.items():
            here = now.splits.get(split)
            if here is None:
                return f"split {split} is not trained on"
            if here.rows != then.rows:
                return f"split {split} had {then.rows:,} rows and has {here.rows:,}"
            known = self.made_from == now.made_from != ""
            if here.content != then.content and not (known and here.cut == then.cut):
                cut = "" if here.cut == then.cut else ", or has them in shards of other sizes"
                return f"split {split} holds other rows{cut}"
        for key in ("row_group_rows", "shuffle", "seed", "interleave", "batch_size"):
            if getattr(self, key) != getattr(now, key):
                return f"{key} was {getattr(self, key)} and is {getattr(now, key)}"
        return None


class DataSeen(Strict):
    """What a run takes from its data: numerics' scales, share of positives by task (None if unknown), its rows."""

    numerics: dict[str, NumericScale] = {}
    base_rates: dict[str, float | None] = {}
    stream: Stream | None = None


def parts(features: Schema, model: ModelConfig, *, defaults: bool = True) -> dict[str, dict[str, Any]]:
    """What decides the meaning of a model's weights, by part: `table video`, `feature watched`, ..., `model`, `order`.

    How much a task weighs and how it takes unknown labels is how it learns, and no part. Whether rows may share a
    feature's value is how rows are written and read, and no part either.

    Args:
        defaults: whether options of features and of the model that have their default are told too.
    """
    told: dict[str, Any] = {"mode": "json", "exclude_defaults": not defaults}
    found: dict[str, dict[str, Any]] = {}
    for name, table in features.tables.items():
        hashed = {"hash": ID_HASH, "salt": features.salt(name)} if table.ids == "hash" else {}
        found[f"table {name}"] = {"rows": table.rows, "dim": table.dim, "ids": table.ids, **hashed}
    for name, feature in features.features.items():
        found[f"feature {name}"] = {
            **feature.model_dump(**told, exclude={"scope"}),
            "kind": feature.kind,
            "column": feature.column or name,
        }
    found |= {f"group {name}": {"tokens": tokens} for name, tokens in features.groups.items()}
    found |= {f"task {name}": {"column": column} for name, column in features.label_columns().items()}
    of_others = {*BACKBONES} - {model.backbone}
    found["model"] = {**model.model_dump(**told, exclude=of_others), "backbone": model.backbone}
    found["order"] = {key: [*getattr(features, key)] for key in ORDERED if key != "tables"}
    return found


def checksums(features: Schema, model: ModelConfig) -> dict[str, str]:
    """One a part. An option that a later program adds leaves them as they are, as long as it has its default."""
    return {part: json_checksum(content) for part, content in parts(features, model, defaults=False).items()}


class Rename:
    """Names here -> names in another run; remembers which of its entries were of use.

    A name stands for itself and for what begins with it and a dot; of two that fit, the longer one counts.
    """

    def __init__(self, rename: Mapping[str, str]) -> None:
        self._rename = dict(sorted(rename.items(), key=lambda item: -len(item[0])))
        self._used: set[str] = set()

    def __call__(self, name: str) -> str:
        for new, old in self._rename.items():
            if name == new or name.startswith(f"{new}."):
                self._used.add(new)
                return old + name.removeprefix(new)
        return name

    def of_no_use(self) -> list[str]:
        """Entries that fitted no name."""
        return [new for new in self._rename if new not in self._used]

    def old_names(self) -> list[str]:
        """What the entries lead to."""
        return [*self._rename.values()]


def columns_of(features: Schema, table: str) -> set[tuple[str, tuple[float, ...] | None]]:
    """Raw columns that a table's rows stand for, and where each is cut into rows, None where it is hashed or kept."""
    return {
        (feature.column or name, feature.boundaries if isinstance(feature, IdFeature) else None)
        for name, feature in features.features.items()
        if getattr(feature, "table", None) == table
    }


def order_of(features: Mapping[str, Any]) -> dict[str, list[str]]:
    """The keys of a schema's mappings, as a file has them, in their order."""
    return {key: list(features.get(key) or ()) for key in ORDERED}


def in_order_of(
    features: Schema, order: Mapping[str, Iterable[str]], there: Callable[[str], str] = lambda name: name
) -> Schema:
    """The schema with its keys in another's order, mapping by mapping, where both have the same keys.

    Args:
        order: the other's keys, by `order_of`.
        there: what a key is called there.
    """
    turned = {}
    for key in ORDERED:
        mapping = getattr(features, key)
        places = {name: place for place, name in enumerate(order.get(key, ()))}
        if {there(name) for name in mapping} == places.keys() and len(mapping) == len(places):
            turned[key] = dict(sorted(mapping.items(), key=lambda item: places[there(item[0])]))
    return features.model_copy(update=turned)


def first_difference(old: Any, new: Any, *, but: frozenset[str] = frozenset(), key: str = "") -> Difference | None:
    """The first key, dotted, in which two mappings of mappings differ; the order of keys does not count.

    Args:
        but: keys that may differ, with all that is below them.
    """
    if key in but or old == new:
        return None
    if not isinstance(old, dict) or not isinstance(new, dict):
        return key, old, new
    for name in [*old, *(name for name in new if name not in old)]:
        inner = f"{key}.{name}" if key else str(name)
        found = first_difference(old.get(name), new.get(name), but=but, key=inner)
        if found is not None:
            return found
    return None


def difference_in_words(old: Mapping[str, dict[str, Any]], new: Mapping[str, dict[str, Any]]) -> str | None:
    """The first part in which two models differ, and how, or None."""
    for part in [*old, *(part for part in new if part not in old)]:
        if part not in new:
            return f"{part} is not there now"
        if part not in old:
            return f"{part} was not there"
        found = first_difference(old[part], new[part])
        if found is not None:
            key, was, now = found
            if part == "order":
                was, now = next((a, b) for a, b in zip(was, now, strict=True) if a != b)
                return f"the order of {key} was another ({was} stood where {now} stands)"
            return f"{part}: {key} was {was!r} and is {now!r}"
    return None
