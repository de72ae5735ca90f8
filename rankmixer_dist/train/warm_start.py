"""Begins a run with another run's weights, as far as they mean the same here."""

import math
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from torch import Tensor, nn

from rankmixer_dist.checkpoint.folder import TENSORS
from rankmixer_dist.checkpoint.opening import open_checkpoint
from rankmixer_dist.checkpoint.storage import read_pieces
from rankmixer_dist.config import RunConfig
from rankmixer_dist.errors import UserError
from rankmixer_dist.identity import Rename
from rankmixer_dist.parallel.topology import Topology, failing_together
from rankmixer_dist.pieces import Piece, dense_key, whole
from rankmixer_dist.sparse.shard import Tables, table_key, table_pieces
from rankmixer_dist.train.counterparts import Counterparts
from rankmixer_dist.train.meaning import what_it_means
from rankmixer_dist.train.parameter_runs import Run, parameter_runs

_KINDS = ("weight", "sum")


@dataclass(frozen=True)
class WarmStart:
    """What was taken from `checkpoint`, by name, and what was not and starts afresh.

    `fresh_tables`: table -> why. `partly`: dense parameters of which a part was taken: that of the tasks, tokens and
    features that are there too. `scales`: numerics that are standardised as there. `renamed`: this run's name -> the
    other's, of what was taken under another name. `unused`: tables and parameters that only the other run has.
    `changed_groups`: semantic groups that have other features, or in another order, there. `differs`: what has the same
    name there but is not quite the same.
    """

    checkpoint: str
    tables: list[str]
    fresh_tables: dict[str, str]
    dense: list[str]
    partly: list[str]
    fresh_dense: list[str]
    scales: list[str]
    renamed: dict[str, str]
    unused: list[str]
    changed_groups: list[str]
    differs: list[str]

    def __str__(self) -> str:
        """One line for the person who watches."""
        tables = len(self.tables) + len(self.fresh_tables)
        dense = len(self.dense) + len(self.partly) + len(self.fresh_dense)
        line = f"starts from {self.checkpoint}: {len(self.tables)} of {tables} tables"
        line += f", {len(self.dense)} of {dense} dense parameters"
        line += f" ({len(self.partly)} more in part)" if self.partly else ""
        line += _listed("renamed", [f"{new} was {old}" for new, old in self.renamed.items()])
        fresh = [f"{name} ({why})" for name, why in self.fresh_tables.items()]
        line += _listed("afresh", [*fresh, *self.fresh_dense])
        line += _listed("unused", self.unused)
        line += _listed("groups of other features", self.changed_groups)
        line += _listed("differs", self.differs)
        return line + _listed("standardised as there", self.scales)


def _listed(title: str, names: list[str]) -> str:
    return f"; {title}: {', '.join(names[:5])}{', ...' if len(names) > 5 else ''}" if names else ""


def warm_start(checkpoint: Path, tables: Tables, module: nn.Module, topology: Topology, config: RunConfig) -> WarmStart:
    """Loads what means the same into the tables and, before an engine holds it, the dense module; all ranks call it.

    Args:
        config: this run's, with `train.start_from`.

    Raises:
        UserError: the checkpoint is damaged, `rename` names nothing, or nothing means the same.
    """
    start = config.train.start_from
    assert start is not None
    about = None
    with failing_together():
        about = open_checkpoint(checkpoint, rank=topology.rank, world_size=topology.world_size)
    assert about is not None
    there = Rename(start.rename)
    models = Counterparts(*what_it_means(checkpoint, about), config.features, config.model, there)
    fresh_tables = {name: why for name in config.features.tables if (why := models.table_problem(name)) is not None}
    taken_tables = {name: models.old_name("table", name) for name in config.features.tables if name not in fresh_tables}
    shapes = {name: tuple(parameter.shape) for name, parameter in module.named_parameters()}
    runs = {name: parameter_runs(name, shape, about.shapes, models) for name, shape in shapes.items()}
    differs = models.differences()
    _check_rename(there, models, about.shapes)
    if not taken_tables and not any(runs.values()):
        raise UserError(f"train.start_from.run {checkpoint}: no table and no parameter of it fits this model")
    kinds = _KINDS if start.accumulators else _KINDS[:1]
    # The pieces of one reading are told apart by where they lie there: two tables of one there are two readings.
    for pieces in _readings(taken_tables, table_pieces(tables, kinds)):
        read_pieces(pieces, checkpoint / TENSORS)
    _take_dense(dict(module.named_parameters()), runs, about.shapes, checkpoint / TENSORS)

    whole_ones = [name for name in runs if sum(run.count for run in runs[name]) == math.prod(shapes[name])]
    fresh_dense = [name for name in runs if not runs[name]]
    used = {*taken_tables.values(), *(run.there for of_one in runs.values() for run in of_one)}
    renamed = {name: old for name, old in taken_tables.items() if name != old}
    renamed |= {name: runs[name][0].there for name in whole_ones if there(name) != name}
    return WarmStart(
        checkpoint=str(checkpoint),
        tables=[*taken_tables],
        fresh_tables=fresh_tables,
        dense=whole_ones,
        partly=[name for name in runs if runs[name] and name not in whole_ones],
        fresh_dense=fresh_dense,
        scales=[*models.scales(about.data)],
        renamed=renamed,
        unused=sorted({*about.shapes, *models.theirs.tables} - used),
        changed_groups=models.changed_groups(),
        differs=differs,
    )


def _check_rename(there: Rename, models: Counterparts, shapes: Iterable[str]) -> None:
    """Raises a `UserError` for an entry that fitted no name here, or leads to none there."""
    named = "table, feature, group, task, raw column and no dense parameter"
    if there.of_no_use():
        raise UserError(f"train.start_from.rename: {there.of_no_use()[0]!r} is no {named} of this run")
    theirs = models.theirs
    known = {*theirs.tables, *theirs.features, *theirs.groups, *theirs.tasks}
    known |= {*theirs.raw_columns().values(), *theirs.label_columns().values()}
    for old in there.old_names():
        if old not in known and not any(name == old or name.startswith(f"{old}.") for name in shapes):
            raise UserError(f"train.start_from.rename: {old!r} is no {named} of the run to start from")


def _readings(taken: Mapping[str, str], pieces: Iterable[Piece]) -> list[list[Piece]]:
    """Tables' pieces under the names that the tables have there, no table of it twice in a reading; alike on ranks."""
    seen: Counter[str] = Counter()
    places: dict[str, tuple[str, int]] = {}
    for name, old in taken.items():
        places |= {table_key(name, kind): (table_key(old, kind), seen[old]) for kind in _KINDS}
        seen[old] += 1
    found: list[list[Piece]] = [[] for _ in range(max(seen.values(), default=0))]
    for piece in pieces:
        if piece.key in places:
            key, reading = places[piece.key]
            found[reading].append(replace(piece, key=key))
    return found


@torch.no_grad()
def _take_dense(
    parameters: Mapping[str, nn.Parameter],
    runs: Mapping[str, Sequence[Run]],
    shapes: Mapping[str, tuple[int, ...]],
    folder: Path,
) -> None:
    """Fills parameters: at once what is one to one, by way of a copy what is put together, or taken twice."""
    uses = Counter(run.there for of_one in runs.values() for run in of_one)
    wanted: list[Piece] = []
    aside: dict[str, Tensor] = {}
    for name, of_one in runs.items():
        flat = parameters[name].detach().view(-1)
        for run in of_one:
            size = math.prod(shapes[run.there])
            if uses[run.there] == 1 and run.count == size == flat.numel():
                wanted.append(whole(dense_key(run.there), flat))
            elif run.there not in aside:
                aside[run.there] = torch.empty(size)
    read_pieces([*wanted, *(whole(dense_key(old), tensor) for old, tensor in aside.items())], folder)
    for name, of_one in runs.items():
        flat = parameters[name].detach().view(-1)
        for run in of_one:
            if run.there in aside:
                flat[run.at : run.at + run.count] = aside[run.there][run.there_at : run.there_at + run.count]
