"""Scores a split with all ranks: predictions to Parquet, exact figures to rank 0."""

import shutil
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch
from torch import nn

from rankmixer_dist.batch import Batch, Position
from rankmixer_dist.errors import RankError, UserError, disk_errors_told
from rankmixer_dist.parallel.topology import Topology, all_gather_objects, failing_together
from rankmixer_dist.schema import LABEL_PREFIX, ROW_ID, SCORE_PREFIX, TIMESTAMP, USER_ID
from rankmixer_dist.sparse.shard import Tables
from rankmixer_dist.train.loop import Epochs
from rankmixer_dist.train.non_finite import ADVICE
from rankmixer_dist.train.paths import Way, evaluating, score
from rankmixer_dist.train.rank_counting import OnCount, RankCounting
from rankmixer_dist.train.routing_counts import RoutingCounts, mixtures
from rankmixer_dist.train.slice_columns import SliceColumn


class ScoredRows(Epochs, Protocol):
    """One rank's batches of a split in the order of the shards, and all ranks' rows."""

    @property
    def rows(self) -> int: ...


def score_split(
    tables: Tables,
    module: nn.Module,
    rows: ScoredRows,
    *,
    tasks: tuple[str, ...],
    predictions: Path | None,
    scratch: Path,
    topology: Topology,
    on_batch: Callable[[int], None] = lambda rows: None,
    on_count: OnCount = lambda stage, done, parts: None,
    way: Way = "served",
    slices: Sequence[SliceColumn] = (),
) -> dict[str, Any] | None:
    """Scores every row once over all ranks and leaves the model as it was, in training or not.

    Args:
        rows: this rank's batches of the split.
        predictions: folder for the scores, `part-<rank>.parquet`, made anew; None to keep the figures alone.
        scratch: folder that all ranks see, for the sorted rows of a large split; gone at the end.
        on_batch: told the global batch's rows after each one.
        on_count: told how far counting is.
        way: through a mixture of experts.
        slices: columns whose values get figures of their own.

    Returns:
        `rows` and `tasks` of eval.json on rank 0 (with `reachable` where the data knows the true probabilities,
        `routing` where there are experts, `slices` where there are columns to slice by), None elsewhere.

    Raises:
        NotCounted: sorted rows cannot be written.
        UserError: rows have a score that is not finite, or predictions cannot be written.
    """
    scored_rows, lost_rows = 0, 0
    experts = mixtures(module)
    routing = RoutingCounts(experts) if experts else None
    with ExitStack() as stack:
        counting = stack.enter_context(RankCounting(tasks, slices, topology, rows=rows.rows, scratch=scratch))
        writer = _PredictionWriter(predictions, tasks, topology) if predictions is not None else None
        stack.enter_context(evaluating(tables, module, way))
        for batch, _ in rows.epoch(Position(0, 0)):
            on_device = batch.to(topology.device)
            scored_batch = score(tables, module, on_device)
            scores_BK = torch.sigmoid(scored_batch.logits_BK.float()).cpu().numpy()
            if routing is not None:
                routing.add(routing.of(scored_batch.routing))
            real = batch.weight_B.numpy() > 0
            finite = np.isfinite(scores_BK).all(axis=1)
            lost_rows += int((real & ~finite).sum())
            real &= finite
            scored_rows += int(real.sum())
            counting.add(batch, real, scores_BK)
            if writer is not None:
                writer.write(batch, real, scores_BK[real])
            on_batch(int(batch.global_weight))
        lost, scored = (sum(counts) for counts in zip(*all_gather_objects((lost_rows, scored_rows)), strict=True))
        if lost:
            raise UserError(
                f"{lost} of {rows.rows} rows have a score that is not finite: the weights have diverged; {ADVICE}"
            )
        if writer is not None:
            writer.close()
        routed = {} if routing is None else {"routing": routing.summed().figures()}
        figures = counting.figures(on_count)
    return None if figures is None else {"rows": scored, **figures, **routed}


def single_figures(result: Mapping[str, Any]) -> dict[str, float]:
    """The single figures of a `score_split` result as `<task>.<figure>`, those without a value left out."""
    found: dict[str, float] = {}
    for task, figures in result["tasks"].items():
        found |= {f"{task}.{name}": float(value) for name, value in figures.items() if isinstance(value, int | float)}
    return found


class _PredictionWriter:
    """A rank's part of the predictions; all ranks call all methods but `write`.

    Raises:
        UserError: a rank cannot write its part: a full disk.
    """

    def __init__(self, folder: Path, tasks: tuple[str, ...], topology: Topology) -> None:
        self._path = folder / f"part-{topology.rank:05d}.parquet"
        columns = [pa.field(name, pa.int64()) for name in (ROW_ID, USER_ID, TIMESTAMP)]
        columns += [pa.field(prefix + task, pa.float32()) for task in tasks for prefix in (LABEL_PREFIX, SCORE_PREFIX)]
        self._columns = pa.schema(columns)
        with failing_together(), disk_errors_told(folder):
            if topology.is_first:
                shutil.rmtree(folder, ignore_errors=True)
                folder.mkdir(parents=True)
        with failing_together(), disk_errors_told(self._path):
            self._writer = pq.ParquetWriter(self._path, self._columns)

    def write(self, batch: Batch, real: np.ndarray, scores_RK: np.ndarray) -> None:
        columns = [batch.row_id_B.numpy()[real], batch.user_id_B.numpy()[real], batch.timestamp_B.numpy()[real]]
        for place in range(scores_RK.shape[1]):
            columns += [batch.labels_BK.numpy()[real, place], scores_RK[:, place]]
        with disk_errors_told(self._path, RankError):
            self._writer.write_table(pa.table([pa.array(column) for column in columns], schema=self._columns))

    def close(self) -> None:
        with failing_together(), disk_errors_told(self._path):
            self._writer.close()
