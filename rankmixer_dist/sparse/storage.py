"""Tables and their optimizer state on disk, by torch.distributed.checkpoint: any sharding reads what another wrote."""

from pathlib import Path
from typing import Any

import torch
import torch.distributed.checkpoint as dcp
from torch.distributed.checkpoint.metadata import TensorStorageMetadata

from rankmixer_dist.sparse.shard import Tables


def save_tables(tables: Tables, folder: Path) -> None:
    """Writes every table's weights and accumulators; all ranks call it."""
    dcp.save(tables.state(), checkpoint_id=str(folder))


def load_tables(tables: Tables, folder: Path) -> None:
    """Reads what `save_tables` wrote straight into this rank's shards; all ranks call it."""
    state: dict[str, Any] = tables.state()
    dcp.load(state, checkpoint_id=str(folder))


def load_matching_tables(tables: Tables, folder: Path, *, accumulators: bool) -> tuple[list[str], list[str]]:
    """Reads the tables that `folder` holds under the same name and in the same shape; all ranks call it.

    Returns:
        The names of the tables that were read, and of those that were not and keep what they hold.
    """
    held = dcp.FileSystemReader(str(folder)).read_metadata().state_dict_metadata
    state = tables.state()
    names = sorted(name.removesuffix(".weight") for name in state if name.endswith(".weight"))
    matched = [name for name in names if _has_shape(held.get(f"{name}.weight"), state[f"{name}.weight"].shape)]
    kinds = ("weight", "sum") if accumulators else ("weight",)
    # A table-wise table has its accumulator in the state of its own rank only.
    wanted = {key: state[key] for name in matched for kind in kinds if (key := f"{name}.{kind}") in state}
    dcp.load(wanted, checkpoint_id=str(folder))
    return matched, [name for name in names if name not in matched]


def _has_shape(saved: Any, shape: torch.Size) -> bool:
    return isinstance(saved, TensorStorageMetadata) and saved.size == shape
