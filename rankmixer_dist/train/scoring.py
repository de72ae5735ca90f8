"""Scores a split with all ranks: predictions to Parquet, exact metrics to rank 0."""

import shutil
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch
from torch import nn

from rankmixer_dist.batch import Batch, Position
from rankmixer_dist.errors import RankError, UserError, disk_errors_told
from rankmixer_dist.metrics import TaskMetrics
from rankmixer_dist.parallel.topology import Topology, all_gather_objects, failing_together, gather_objects
from rankmixer_dist.schema import LABEL_PREFIX, ROW_ID, SCORE_PREFIX, TIMESTAMP, USER_ID
from rankmixer_dist.sparse.shard import Tables
from rankmixer_dist.train.loop import Epochs
from rankmixer_dist.train.non_finite import ADVICE
from rankmixer_dist.train.paths import Way, evaluating, logits
from rankmixer_dist.train.routing_counts import RoutingCounts, mixtures
from rankmixer_dist.train.slice_columns import SliceColumn
from rankmixer_dist.train.sliced_scores import SlicedScores


class ScoredRows(Epochs, Protocol):
    """One rank's batches of a split in the order of time, and all ranks' rows."""

    @property
    def rows(self) -> int: ...


def score_split(
    tables: Tables,
    module: nn.Module,
    rows: ScoredRows,
    *,
    tasks: tuple[str, ...],
    predictions: Path | None,
    topology: Topology,
    on_batch: Callable[[int], None],
    way: Way = "served",
    slices: Sequence[SliceColumn] = (),
) -> dict[str, Any] | None:
    """Scores every row once over all ranks and leaves the model as it was, in training or not.

    Args:
        rows: this rank's batches of the split.
        predictions: folder for the scores, `part-<rank>.parquet`, made anew; None to keep the figures alone.
        on_batch: told the global batch's rows after each one.
        way: through a mixture of experts.
        slices: columns whose values get figures of their own.

    Returns:
        `rows` and `tasks` of eval.json on rank 0 (with `reachable` where the data knows the true probabilities,
        `routing` where there are experts, `slices` where there are columns to slice by), None elsewhere.

    Raises:
        UserError: rows have a score that is not finite, or predictions cannot be written.
    """
    writer = _PredictionWriter(predictions, tasks, topology) if predictions is not None else None
    scored = {task: TaskMetrics() for task in tasks}
    truth: dict[str, TaskMetrics] = {}
    sliced = [SlicedScores(column, tasks) for column in slices]
    scored_rows, lost_rows = 0, 0
    experts = mixtures(module)
    routing = RoutingCounts(experts) if experts else None
    with evaluating(tables, module):
        for batch, _ in rows.epoch(Position(0, 0)):
            on_device = batch.to(topology.device)
            scores_BK = torch.sigmoid(logits(tables, module, on_device, way).float()).cpu().numpy()
            if routing is not None:
                routing.add(routing.of_last_forward())
            real = batch.weight_B.numpy() > 0
            finite = np.isfinite(scores_BK).all(axis=1)
            lost_rows += int((real & ~finite).sum())
            real &= finite
            labels_BK, user_id = batch.labels_BK.numpy()[real], batch.user_id_B.numpy()[real]
            for place, task in enumerate(tasks):
                labelled = ~np.isnan(labels_BK[:, place])
                labels, users = labels_BK[labelled, place], user_id[labelled]
                scored[task].update(scores_BK[real, place][labelled], labels, users)
                if batch.truth_BK is not None:
                    known = truth.setdefault(task, TaskMetrics())
                    known.update(batch.truth_BK.numpy()[real, place][labelled], labels, users)
            for column in sliced:
                column.update(batch, real, scores_BK)
            scored_rows += int(real.sum())
            if writer is not None:
                writer.write(batch, real, scores_BK[real])
            on_batch(int(batch.global_weight))
    lost_rows = sum(all_gather_objects(lost_rows))
    if lost_rows:
        raise UserError(
            f"{lost_rows} of {rows.rows} rows have a score that is not finite: the weights have diverged; {ADVICE}"
        )
    if writer is not None:
        writer.close()
    routed = {} if routing is None else {"routing": routing.summed().figures()}
    states = {
        name: {t: m.to_arrays() for t, m in by_task.items()} for name, by_task in (("scored", scored), ("truth", truth))
    }
    parts = gather_objects({**states, "rows": scored_rows, "slices": [column.to_arrays() for column in sliced]})
    if parts is None:
        return None
    figures: dict[str, Any] = {task: _merged(parts, "scored", task).compute() for task in tasks}
    for task in truth:
        best = _merged(parts, "truth", task).compute()
        figures[task]["reachable"] = {"auc": best["auc"], "uauc": best["uauc"]}
    by_column = _by_column(slices, tasks, [part["slices"] for part in parts])
    return {"rows": sum(part["rows"] for part in parts), "tasks": figures, **routed, **by_column}


def figures_of(result: Mapping[str, Any]) -> dict[str, float]:
    """The single figures of a `score_split` result as `<task>.<figure>`, those without a value left out."""
    found: dict[str, float] = {}
    for task, figures in result["tasks"].items():
        found |= {f"{task}.{name}": float(value) for name, value in figures.items() if isinstance(value, int | float)}
    return found


def _by_column(slices: Sequence[SliceColumn], tasks: Sequence[str], parts: list[Any]) -> dict[str, Any]:
    """`slices` of eval.json, and `slice_legends`, from every rank's states of every column."""
    if not slices:
        return {}
    merged = [SlicedScores(column, tasks) for column in slices]
    for part in parts:
        for state, arrays in zip(merged, part, strict=True):
            state.merge(arrays)
    return {
        "slices": {state.column.name: state.compute() for state in merged},
        "slice_legends": {column.name: column.legend for column in slices},
    }


def _merged(parts: list[Any], name: str, task: str) -> TaskMetrics:
    total = TaskMetrics()
    for part in parts:
        if task in part[name]:
            total.merge(TaskMetrics.from_arrays(part[name][task]))
    return total


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
