"""Evaluates a run's newest or best checkpoint on a split: predictions, eval.json and the figures themselves."""

import os
import shutil
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch

from rankmixer_dist.checkpoint.folder import checkpoint_path, named_checkpoint, step_of
from rankmixer_dist.config import DTSIConfig, RunConfig
from rankmixer_dist.errors import disk_errors_told
from rankmixer_dist.models.ranker import Ranker
from rankmixer_dist.parallel.alike import require_shared
from rankmixer_dist.parallel.topology import Topology, broadcast_object, failing_together
from rankmixer_dist.sparse.shard import Tables
from rankmixer_dist.there import is_there
from rankmixer_dist.train.build import build_model, build_tables, expert_grid_of, spread_out
from rankmixer_dist.train.checkpoint import begun_splits, load_for_scoring
from rankmixer_dist.train.meaning import require_same_meaning
from rankmixer_dist.train.memory import keep_freed_memory
from rankmixer_dist.train.paths import Way
from rankmixer_dist.train.progress import EvaluateProgress
from rankmixer_dist.train.run_dir import require_run, write_json
from rankmixer_dist.train.scoring import ScoredRows, score_split
from rankmixer_dist.train.slice_columns import CountValues, SliceColumn, slice_columns


def evaluate(
    config: RunConfig,
    topology: Topology,
    rows: ScoredRows,
    *,
    count_values: CountValues | None = None,
) -> dict[str, Any] | None:
    """Scores `config.eval.split` with all ranks and writes `predictions/` and `eval.json`.

    Numerics are standardised as they were in training, whatever the statistics of the data that is scored.

    Args:
        config: with its keys in the run's order (`run_dir.in_runs_order`).
        count_values: of the prepared data; `eval.slices` asks it before scoring begins.

    Returns:
        The content of eval.json on rank 0, None elsewhere.

    Raises:
        UserError: the run was not trained, or not with this config, its checkpoint is damaged or of another model, a
            column to slice by has too many values, or what comes out cannot be written: what was there then stands.
    """
    share = topology.share_of(config.eval.batch_size)
    keep_freed_memory(topology.device)
    step, epoch, name = 0, 0, config.eval.checkpoint
    with failing_together():
        if topology.is_first:
            require_run(config)
            step = step_of(named_checkpoint(config.run_dir, name, key=f"eval.checkpoint {name}:"))
    require_shared(config.run_dir, topology, key="runs")
    # Rank 0 says which it is: where the run is being trained, another may be the newest a moment later.
    checkpoint = checkpoint_path(config.run_dir, broadcast_object(step))
    with failing_together():
        epoch = require_same_meaning(checkpoint, config).position.epoch
    slices: list[SliceColumn] = []
    if config.eval.slices:
        assert count_values is not None
        slices = slice_columns(config, trained_on=begun_splits(config, epoch), count_values=count_values)
    tables, module = open_model(config, topology, checkpoint, rows_per_rank=share)
    tasks = tuple(config.features.tasks)

    def scored(way: Way, predictions: Path | None) -> dict[str, Any] | None:
        with EvaluateProgress(rows=rows.rows, enabled=topology.is_first) as shown:
            return score_split(
                tables,
                module,
                rows,
                tasks=tasks,
                predictions=predictions,
                scratch=config.run_dir / "scored_rows.partial",
                topology=topology,
                on_batch=shown.advance,
                on_count=shown.counted,
                way=way,
                slices=slices if way == "served" else (),
            )

    aside = config.run_dir / "predictions.partial"
    try:
        return _evaluated(config, scored, aside, checkpoint)
    finally:
        if topology.is_first:
            shutil.rmtree(aside, ignore_errors=True)


def _evaluated(
    config: RunConfig, scored: Callable[[Way, Path | None], dict[str, Any] | None], aside: Path, checkpoint: Path
) -> dict[str, Any] | None:
    """Scores into a folder aside, and puts that in the place of what was there when all is known to be good."""
    result = scored("served", aside)
    if isinstance(config.model.mixture, DTSIConfig) and config.eval.compare_paths:
        trained = scored("trained", None)
        if result is not None and trained is not None:
            result["routing"]["trained_path"] = _trained_path(result["tasks"], trained["tasks"])
    with failing_together():
        if result is not None:
            result |= {"checkpoint": str(checkpoint.relative_to(config.run_dir)), "split": config.eval.split}
            _publish(config.run_dir, aside, result)
    return result


def _publish(run_dir: Path, aside: Path, about: dict[str, Any]) -> None:
    """Puts predictions and eval.json in the place of those of before, which stand where the new ones have no room."""
    figures, predictions, old = (run_dir / name for name in ("eval.json.new", "predictions", "predictions.old"))
    write_json(figures, about)
    with disk_errors_told(predictions):
        shutil.rmtree(old, ignore_errors=True)
        if is_there(predictions):
            os.replace(predictions, old)
        os.replace(aside, predictions)
        os.replace(figures, run_dir / "eval.json")
        shutil.rmtree(old, ignore_errors=True)


def open_model(config: RunConfig, topology: Topology, checkpoint: Path, *, rows_per_rank: int) -> tuple[Tables, Ranker]:
    """Tables and dense model with a checkpoint's weights, ready to score; all ranks call it.

    The model's experts lie over the ranks as `config.parallel` says, or whole on each rank if so many ranks cannot
    share them out.

    Raises:
        UserError: the checkpoint is damaged or of another model.
    """
    about = require_same_meaning(checkpoint, config)
    grid = expert_grid_of(config) if topology.world_size % config.parallel.expert_size == 0 else None
    module = build_model(config, about.data, grid=grid)
    if grid is not None:
        spread_out(config, module, grid)
    module = module.to(topology.device)
    tables, _ = build_tables(config, topology, rows_per_rank=rows_per_rank)
    load_for_scoring(checkpoint, tables, module, topology)
    return tables, module.to(torch.bfloat16) if config.dense.precision == "bf16" else module


def _trained_path(served: Mapping[str, Any], trained: Mapping[str, Any]) -> dict[str, Any]:
    """AUC and logloss of each task by the path that trained, and how much higher the served one's logloss is."""
    return {
        task: {
            "auc": figures["auc"],
            "logloss": figures["logloss"],
            "served_gap": served[task]["logloss"] / figures["logloss"] - 1,
        }
        for task, figures in trained.items()
    }
