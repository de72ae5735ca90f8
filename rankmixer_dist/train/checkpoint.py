"""Checkpoints that are complete or absent: written aside by all ranks, then renamed by one.

checkpoints/step-00000120/
  progress.json     step, rows, data position, seed, versions
  dense.pt          whole dense weights and optimizer moments, fp32 (read with weights_only)
  tables/           every table and its optimizer state, by torch.distributed.checkpoint, whatever the sharding
"""

import json
import os
import shutil
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from torch import nn

from rankmixer_dist.errors import UserError
from rankmixer_dist.parallel.engine import DenseEngine, DenseState
from rankmixer_dist.parallel.topology import Topology, barrier
from rankmixer_dist.sparse.shard import Tables
from rankmixer_dist.sparse.storage import load_tables, save_tables
from rankmixer_dist.train.loop import Progress

_PREFIX = "step-"


def checkpoints(run_dir: Path) -> list[Path]:
    """Complete checkpoints of a run, oldest first."""
    folder = run_dir / "checkpoints"
    return sorted(path for path in folder.glob(_PREFIX + "*") if path.suffix == "") if folder.is_dir() else []


def save_checkpoint(
    run_dir: Path, progress: Progress, tables: Tables, engine: DenseEngine, *, topology: Topology, keep: int
) -> Path:
    """Saves a run's state; all ranks call it. The oldest beyond `keep` are removed once the new one is complete."""
    final = run_dir / "checkpoints" / f"{_PREFIX}{progress.step:08d}"
    aside = final.with_name(final.name + ".partial")
    if topology.is_first:
        shutil.rmtree(aside, ignore_errors=True)
        aside.mkdir(parents=True)
    barrier()
    save_tables(tables, aside / "tables")
    state = engine.state()
    if topology.is_first:
        torch.save(asdict(state), aside / "dense.pt")
        about = {
            "step": progress.step,
            "rows": progress.rows,
            "position": {"epoch": progress.position.epoch, "row": progress.position.row},
            "world_size": topology.world_size,
            "torch": torch.__version__,
        }
        (aside / "progress.json").write_text(json.dumps(about, indent=1) + "\n")
    barrier()
    if topology.is_first:
        shutil.rmtree(final, ignore_errors=True)
        os.replace(aside, final)
        for old in checkpoints(run_dir)[:-keep]:
            shutil.rmtree(old)
    barrier()
    return final


def load_checkpoint(path: Path, tables: Tables, engine: DenseEngine) -> dict[str, Any]:
    """Takes up the tables, the dense model and both optimizers from `path`, saved under any sharding or ZeRO stage.

    Returns:
        The content of progress.json.

    Raises:
        UserError: a file of the checkpoint is missing or does not fit the model.
    """
    about, saved = _read(path, engine.module)
    load_tables(tables, path / "tables")
    engine.load_state(DenseState(**saved))
    return about


def load_for_scoring(path: Path, tables: Tables, module: nn.Module) -> None:
    """Takes up the weights alone; raises as `load_checkpoint` does."""
    _, saved = _read(path, module)
    load_tables(tables, path / "tables")
    with torch.no_grad():
        for name, parameter in module.named_parameters():
            parameter.copy_(saved["weights"][name])


def _read(path: Path, module: nn.Module) -> tuple[dict[str, Any], dict[str, Any]]:
    about, saved = read_dense(path)
    names = {name for name, _ in module.named_parameters()}
    if names != saved["weights"].keys():
        missing = sorted(names ^ saved["weights"].keys())[0]
        raise UserError(f"{path}: saved from another model; parameter {missing!r} is in only one of the two")
    return about, saved


def read_dense(path: Path) -> tuple[dict[str, Any], dict[str, Any]]:
    """progress.json and dense.pt of a checkpoint.

    Raises:
        UserError: they cannot be read.
    """
    try:
        about = json.loads((path / "progress.json").read_text())
        saved = torch.load(path / "dense.pt", weights_only=True, map_location="cpu")
    except (OSError, json.JSONDecodeError, RuntimeError) as error:
        raise UserError(f"{path}: not a readable checkpoint: {error}") from error
    return about, saved
