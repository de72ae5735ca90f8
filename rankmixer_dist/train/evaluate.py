"""Evaluates a run's newest checkpoint on a split: predictions, eval.json and the figures themselves."""

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

import torch

from rankmixer_dist.batch import Batch, Position
from rankmixer_dist.config import RunConfig
from rankmixer_dist.errors import UserError
from rankmixer_dist.parallel.topology import Topology, failing_together
from rankmixer_dist.train.build import Statistics, build_model, build_tables
from rankmixer_dist.train.checkpoint import checkpoints, load_for_scoring
from rankmixer_dist.train.loop import Epochs
from rankmixer_dist.train.memory import keep_freed_memory
from rankmixer_dist.train.progress import EvaluateProgress
from rankmixer_dist.train.run_dir import require_run, write_json
from rankmixer_dist.train.scoring import score_split


class EvaluationRows(Epochs, Protocol):
    """One rank's batches of the evaluated split in the order of time, and all ranks' rows."""

    @property
    def rows(self) -> int: ...


def evaluate(
    config: RunConfig,
    topology: Topology,
    rows: EvaluationRows,
    *,
    numerics: Mapping[str, Statistics],
    base_rates: Sequence[float],
) -> dict[str, Any] | None:
    """Scores `config.eval.split` with all ranks and writes `predictions/` and `eval.json`.

    Returns:
        The content of eval.json on rank 0, None elsewhere.

    Raises:
        UserError: the run was not trained, or not with this config.
    """
    share = topology.share_of(config.eval.batch_size)
    keep_freed_memory(topology.device)
    checkpoint = Path()
    with failing_together():
        checkpoint = _newest(require_run(config))
    module = build_model(config, numerics=numerics, base_rates=base_rates).to(topology.device)
    tables, _ = build_tables(config, topology, rows_per_rank=share)
    load_for_scoring(checkpoint, tables, module)
    if config.dense.precision == "bf16":
        module = module.to(torch.bfloat16)
    with EvaluateProgress(rows=rows.rows, enabled=topology.is_first) as shown:
        result = score_split(
            tables,
            module,
            _batches(rows),
            tasks=tuple(config.features.tasks),
            run_dir=config.run_dir,
            topology=topology,
            on_batch=shown.advance,
        )
    if result is None:
        return None
    about = {**result, "checkpoint": str(checkpoint.relative_to(config.run_dir)), "split": config.eval.split}
    write_json(config.run_dir / "eval.json", about)
    return about


def _newest(run_dir: Path) -> Path:
    saved = checkpoints(run_dir)
    if not saved:
        raise UserError(f"{run_dir}: no complete checkpoint; train it with launch/train.py first")
    return saved[-1]


def _batches(rows: EvaluationRows) -> Iterator[Batch]:
    for batch, _ in rows.epoch(Position(0, 0)):
        yield batch
