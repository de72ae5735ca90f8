"""Begins a run with another run's weights, matched by name and shape."""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from torch import nn

from rankmixer_dist.checkpoint.folder import TENSORS
from rankmixer_dist.checkpoint.index import read_index
from rankmixer_dist.checkpoint.opening import open_checkpoint
from rankmixer_dist.checkpoint.storage import read_pieces
from rankmixer_dist.errors import UserError
from rankmixer_dist.parallel.topology import Topology, failing_together
from rankmixer_dist.pieces import Piece, dense_key, whole
from rankmixer_dist.schema import Schema
from rankmixer_dist.sparse.shard import Tables, table_key, table_pieces

_KINDS = ("weight", "sum")


@dataclass(frozen=True)
class WarmStart:
    """What was taken from `checkpoint`, by name, and what was not and starts afresh.

    `renamed`: this run's name -> the other's, of what was taken under another name. `unused`: tables and parameters
    that only the other run has. `changed_groups`: semantic groups that have other features, or in another order, there:
    their tokenizer's weights may be taken, since they fit, but see another input.
    """

    checkpoint: str
    tables: list[str]
    fresh_tables: list[str]
    dense: list[str]
    fresh_dense: list[str]
    renamed: dict[str, str]
    unused: list[str]
    changed_groups: list[str]

    def __str__(self) -> str:
        """One line for the person who watches."""
        tables, dense = len(self.tables) + len(self.fresh_tables), len(self.dense) + len(self.fresh_dense)
        line = f"starts from {self.checkpoint}: {len(self.tables)} of {tables} tables"
        line += f", {len(self.dense)} of {dense} dense parameters"
        line += _listed("renamed", [f"{new} was {old}" for new, old in self.renamed.items()])
        line += _listed("afresh", [*self.fresh_tables, *self.fresh_dense])
        line += _listed("unused", self.unused)
        return line + _listed("groups of other features", self.changed_groups)


def _listed(title: str, names: list[str]) -> str:
    return f"; {title}: {', '.join(names[:5])}{', ...' if len(names) > 5 else ''}" if names else ""


def warm_start(
    checkpoint: Path,
    tables: Tables,
    module: nn.Module,
    topology: Topology,
    *,
    schema: Schema,
    accumulators: bool,
    rename: Mapping[str, str],
) -> WarmStart:
    """Loads what matches into the tables and, before an engine holds it, into the dense module; all ranks call it.

    Args:
        schema: this run's features.
        accumulators: take up the tables' optimizer state too.
        rename: a table, a dense parameter or the beginning of parameters' names here -> what it is called there.

    Raises:
        UserError: the checkpoint is damaged, `rename` names nothing, or nothing matches.
    """
    about = None
    with failing_together():
        about = open_checkpoint(checkpoint, rank=topology.rank, world_size=topology.world_size)
    assert about is not None
    held = read_index(checkpoint / TENSORS)
    names = _Names(rename)

    wanted: list[Piece] = []
    matched: list[str] = []
    fresh: list[str] = []
    for table, config in schema.tables.items():
        found = held.get(table_key(names.there(table)))
        fits = found is not None and found.shape == (config.rows, config.dim)
        (matched if fits else fresh).append(table)
    renamed = {table_key(table, kind): table_key(names.there(table), kind) for table in matched for kind in _KINDS}
    for piece in table_pieces(tables, _KINDS if accumulators else _KINDS[:1]):
        if piece.key in renamed:
            wanted.append(replace(piece, key=renamed[piece.key]))

    taken: list[str] = []
    fresh_dense: list[str] = []
    for name, parameter in module.named_parameters():
        fits = about.shapes.get(names.there(name)) == tuple(parameter.shape)
        (taken if fits else fresh_dense).append(name)
        if fits:
            wanted.append(whole(dense_key(names.there(name)), parameter.detach().view(-1)))

    names.require_all_used()
    if not wanted:
        raise UserError(f"train.start_from.run {checkpoint}: no table and no parameter of it fits this model")
    read_pieces(wanted, checkpoint / TENSORS)
    used = {names.there(name) for name in [*matched, *taken]}
    there = {*about.shapes, *about.config["features"]["tables"]}
    return WarmStart(
        checkpoint=str(checkpoint),
        tables=matched,
        fresh_tables=fresh,
        dense=taken,
        fresh_dense=fresh_dense,
        renamed={name: names.there(name) for name in [*matched, *taken] if names.there(name) != name},
        unused=sorted(there - used),
        changed_groups=_changed_groups(schema, about.config["features"]),
    )


class _Names:
    """Names here -> names in the other run."""

    def __init__(self, rename: Mapping[str, str]) -> None:
        self._rename = dict(rename)
        self._used: set[str] = set()

    def there(self, name: str) -> str:
        for new, old in self._rename.items():
            if name == new or name.startswith(f"{new}."):
                self._used.add(new)
                return old + name.removeprefix(new)
        return name

    def require_all_used(self) -> None:
        for new in self._rename:
            if new not in self._used:
                raise UserError(f"train.start_from.rename: {new!r} is no table and no dense parameter of this run")


def _changed_groups(schema: Schema, other: Mapping[str, Any]) -> list[str]:
    def members(features: Mapping[str, Any], group: str) -> list[tuple[str, str]]:
        return [(name, feature["kind"]) for name, feature in features.items() if feature["group"] == group]

    mine = schema.model_dump(mode="json")["features"]
    return [group for group in schema.groups if members(mine, group) != members(other["features"], group)]
