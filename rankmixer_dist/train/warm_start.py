"""Begins a run with another run's weights, matched by name and shape."""

from dataclasses import dataclass
from pathlib import Path

import torch
from torch import nn

from rankmixer_dist.errors import UserError
from rankmixer_dist.sparse.shard import Tables
from rankmixer_dist.sparse.storage import load_matching_tables
from rankmixer_dist.train.checkpoint import checkpoints, read_dense


@dataclass(frozen=True)
class WarmStart:
    """What was taken from `checkpoint`, by name, and what was not and starts afresh."""

    checkpoint: str
    tables: list[str]
    fresh_tables: list[str]
    dense: list[str]
    fresh_dense: list[str]

    def __str__(self) -> str:
        """One line for the person who watches."""
        tables, dense = len(self.tables) + len(self.fresh_tables), len(self.dense) + len(self.fresh_dense)
        line = f"starts from {self.checkpoint}: {len(self.tables)} of {tables} tables"
        line += f", {len(self.dense)} of {dense} dense parameters"
        fresh = [*self.fresh_tables, *self.fresh_dense]
        return line + (f"; afresh: {', '.join(fresh[:5])}{', ...' if len(fresh) > 5 else ''}" if fresh else "")


def find_checkpoint(path: Path) -> Path:
    """The newest checkpoint of a run directory, or `path` itself if it is a checkpoint.

    Raises:
        UserError: it is neither.
    """
    if (path / "dense.pt").is_file():
        return path
    saved = checkpoints(path)
    if not saved:
        raise UserError(f"train.start_from.run {path}: no complete checkpoint there; train that run first")
    return saved[-1]


def warm_start(checkpoint: Path, tables: Tables, module: nn.Module, *, accumulators: bool) -> WarmStart:
    """Loads what matches into the tables and, before an engine holds it, into the dense module; all ranks call it.

    Raises:
        UserError: the checkpoint cannot be read, or nothing in it matches.
    """
    _, saved = read_dense(checkpoint)
    taken, fresh = [], []
    with torch.no_grad():
        for name, parameter in module.named_parameters():
            weight = saved["weights"].get(name)
            if weight is not None and weight.shape == parameter.shape:
                parameter.copy_(weight)
                taken.append(name)
            else:
                fresh.append(name)
    matched, unmatched = load_matching_tables(tables, checkpoint / "tables", accumulators=accumulators)
    if not taken and not matched:
        raise UserError(f"train.start_from.run {checkpoint}: no table and no parameter of it fits this model")
    return WarmStart(str(checkpoint), matched, unmatched, taken, fresh)
