"""The two ways through a mixture of experts that trains by one and serves by the other, and how far they are apart."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Literal

import torch
from torch import Tensor, nn

from rankmixer_dist.batch import Batch
from rankmixer_dist.layers.routing_report import RoutedRows
from rankmixer_dist.losses import multi_task_loss
from rankmixer_dist.models.ranker import Scored
from rankmixer_dist.parallel.topology import sum_over_ranks
from rankmixer_dist.sparse.shard import Tables

Way = Literal["served", "trained"]
"""served: in eval mode, sparse, by the infer router. trained: in training mode; where rows draw their router, by the
train router."""


def score(tables: Tables, module: nn.Module, batch: Batch) -> Scored:
    """What a model makes of a batch, the way that its mode says; no row draws its router."""
    real_B = batch.weight_B > 0
    rows = RoutedRows(real_B, torch.zeros_like(real_B))
    return module(tables(batch.ids), batch.numerics_BN, rows)


@contextmanager
def evaluating(tables: Tables, module: nn.Module, way: Way = "served") -> Iterator[None]:
    """Without gradients, the tables in eval mode, the model in that of the way; afterwards both as they were."""
    was_training = module.training
    tables.module.eval()
    module.train(way == "trained")
    try:
        with torch.no_grad():
            yield
    finally:
        tables.module.train(was_training)
        module.train(was_training)


def path_gap(tables: Tables, module: nn.Module, batch: Batch, task_weights_K: Tensor) -> float:
    """How much higher the loss of a global batch is as served than as trained, relative to the latter."""

    def loss(way: Way) -> Tensor:
        with evaluating(tables, module, way):
            logits_BK = score(tables, module, batch).logits_BK
            return multi_task_loss(logits_BK, batch.labels_BK, batch.weight_B, task_weights_K, batch.global_weight)[0]

    served, trained = sum_over_ranks(torch.stack([loss("served"), loss("trained")])).tolist()
    return served / trained - 1
