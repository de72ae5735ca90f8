"""What tables are placed on: ranks, their memory, how fast it and the network are, and how much is looked up."""

from collections.abc import Mapping
from dataclasses import dataclass, field

import torch

from rankmixer_dist.schema import NumericFeature, Schema, SequenceFeature


@dataclass(frozen=True)
class Rates:
    """Bytes a second that a rank reads from its memory, and sends to a rank of its host or of another one."""

    memory: float
    within_host: float
    between_hosts: float


@dataclass(frozen=True)
class Room:
    """The ranks that tables are to be placed on.

    rows_per_rank: rows of a rank's batch, for the planner's estimates.
    memory_bytes: memory that a rank has for tables.
    local_world_size: ranks of a host.
    rates: for the planner's estimates; None for the ones that TorchRec takes by default.
    ids_per_row: by feature, for the planner's estimates; a feature that is not named has one id a row.
    """

    device: torch.device
    rows_per_rank: int
    memory_bytes: int
    local_world_size: int
    rates: Rates | None = None
    ids_per_row: Mapping[str, float] = field(default_factory=dict)


def estimated_ids_per_row(schema: Schema, measured: Mapping[str, float]) -> dict[str, float]:
    """Mean ids a row of every feature with ids: one, what was `measured`, or half of a sequence's longest length."""
    found: dict[str, float] = {}
    for name, feature in schema.features.items():
        if isinstance(feature, NumericFeature):
            continue
        guess = feature.max_length / 2 if isinstance(feature, SequenceFeature) else 1.0
        found[name] = measured.get(name, guess)
    return found
