"""Scores a split with all ranks: predictions to Parquet, exact metrics to rank 0."""

import os
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch
from torch import Tensor, nn

from rankmixer_dist.batch import Batch
from rankmixer_dist.metrics import TaskMetrics
from rankmixer_dist.parallel.topology import Topology, barrier, gather_objects
from rankmixer_dist.schema import LABEL_PREFIX, ROW_ID, TIMESTAMP, USER_ID
from rankmixer_dist.sparse.shard import Tables

SCORE_PREFIX = "score_"


@torch.no_grad()
def predict(tables: Tables, module: nn.Module, batch: Batch) -> Tensor:
    """[B, K] probability of each task for each row of a batch, fp32."""
    embeddings = tables(batch.ids)
    logits_BK = module(embeddings.fields, embeddings.sequences, embeddings.lengths, batch.numerics_BN)
    return torch.sigmoid(logits_BK.float())


def score_split(
    tables: Tables,
    module: nn.Module,
    batches: Iterator[Batch],
    *,
    tasks: tuple[str, ...],
    run_dir: Path,
    topology: Topology,
    on_batch: Callable[[int], None],
) -> dict[str, Any] | None:
    """Scores every row once over all ranks and writes `predictions/part-<rank>.parquet`, all parts or none.

    Args:
        batches: this rank's batches of the split.
        on_batch: told the global batch's rows after each one.

    Returns:
        `rows` and `tasks` of eval.json on rank 0 (with `reachable` where the data knows the true probabilities), None
        elsewhere.
    """
    tables.module.eval()
    module.eval()
    aside = run_dir / "predictions.partial"
    if topology.is_first:
        shutil.rmtree(aside, ignore_errors=True)
        aside.mkdir(parents=True)
    barrier()
    scored = {task: TaskMetrics() for task in tasks}
    truth: dict[str, TaskMetrics] = {}
    rows = 0
    with pq.ParquetWriter(aside / f"part-{topology.rank:05d}.parquet", _prediction_columns(tasks)) as writer:
        for batch in batches:
            on_device = batch.to(topology.device)
            scores_BK = predict(tables, module, on_device).cpu().numpy()
            real = batch.weight_B.numpy() > 0
            labels_BK, user_id = batch.labels_BK.numpy()[real], batch.user_id_B.numpy()[real]
            for place, task in enumerate(tasks):
                labelled = ~np.isnan(labels_BK[:, place])
                labels, users = labels_BK[labelled, place], user_id[labelled]
                scored[task].update(scores_BK[real, place][labelled], labels, users)
                if batch.truth_BK is not None:
                    known = truth.setdefault(task, TaskMetrics())
                    known.update(batch.truth_BK.numpy()[real, place][labelled], labels, users)
            rows += int(real.sum())
            writer.write_table(_predictions(batch, real, scores_BK[real], tasks))
            on_batch(int(batch.global_weight))
    barrier()
    if topology.is_first:
        final = run_dir / "predictions"
        shutil.rmtree(final, ignore_errors=True)
        os.replace(aside, final)
    states = {
        name: {t: m.to_arrays() for t, m in by_task.items()} for name, by_task in (("scored", scored), ("truth", truth))
    }
    parts = gather_objects({**states, "rows": rows})
    if parts is None:
        return None
    figures: dict[str, Any] = {task: _merged(parts, "scored", task).compute() for task in tasks}
    for task in truth:
        best = _merged(parts, "truth", task).compute()
        figures[task]["reachable"] = {"auc": best["auc"], "uauc": best["uauc"]}
    return {"rows": sum(part["rows"] for part in parts), "tasks": figures}


def _merged(parts: list[Any], name: str, task: str) -> TaskMetrics:
    total = TaskMetrics()
    for part in parts:
        if task in part[name]:
            total.merge(TaskMetrics.from_arrays(part[name][task]))
    return total


def _prediction_columns(tasks: tuple[str, ...]) -> pa.Schema:
    columns = [pa.field(name, pa.int64()) for name in (ROW_ID, USER_ID, TIMESTAMP)]
    columns += [pa.field(prefix + task, pa.float32()) for task in tasks for prefix in (LABEL_PREFIX, SCORE_PREFIX)]
    return pa.schema(columns)


def _predictions(batch: Batch, real: np.ndarray, scores_BK: np.ndarray, tasks: tuple[str, ...]) -> pa.Table:
    columns = [batch.row_id_B.numpy()[real], batch.user_id_B.numpy()[real], batch.timestamp_B.numpy()[real]]
    for place in range(len(tasks)):
        columns += [batch.labels_BK.numpy()[real, place], scores_BK[:, place]]
    return pa.table([pa.array(column) for column in columns], schema=_prediction_columns(tasks))
