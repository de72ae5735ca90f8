"""Tables and their optimizer state on disk, by torch.distributed.checkpoint: any sharding reads what another wrote."""

from pathlib import Path
from typing import Any

import torch.distributed.checkpoint as dcp

from rankmixer_dist.sparse.shard import Tables


def save_tables(tables: Tables, folder: Path) -> None:
    """Writes every table's weights and accumulators; all ranks call it."""
    dcp.save(tables.state(), checkpoint_id=str(folder))


def load_tables(tables: Tables, folder: Path) -> None:
    """Reads what `save_tables` wrote straight into this rank's shards; all ranks call it."""
    state: dict[str, Any] = tables.state()
    dcp.load(state, checkpoint_id=str(folder))
