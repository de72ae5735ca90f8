"""The two ways through a mixture of experts that trains by one and serves by the other, and how far they are apart."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Literal

import torch
from torch import Tensor, nn

from rankmixer_dist.batch import Batch
from rankmixer_dist.layers.routing_report import RoutedRows
from rankmixer_dist.losses import multi_task_loss
from rankmixer_dist.parallel.topology import sum_over_ranks
from rankmixer_dist.sparse.shard import Tables
from rankmixer_dist.train.routing_counts import mixtures

Way = Literal["served", "trained"]
"""served: sparse, by the infer router. trained: as in training; where rows draw their router, the train router's."""


def logits(tables: Tables, module: nn.Module, batch: Batch, way: Way = "served") -> Tensor:
    """[B, K] logits of a model in eval mode."""
    embeddings = tables(batch.ids)
    experts = mixtures(module)
    real_B = batch.weight_B > 0
    told = (RoutedRows(real_B, torch.zeros_like(real_B)),) if experts else ()
    for layer in experts:
        layer.train(way == "trained")
    logits_BK = module(embeddings.fields, embeddings.sequences, embeddings.lengths, batch.numerics_BN, *told)
    for layer in experts:
        layer.eval()
    return logits_BK


@contextmanager
def evaluating(tables: Tables, module: nn.Module) -> Iterator[None]:
    """Both in eval mode, and without gradients; afterwards as they were."""
    was_training = module.training
    tables.module.eval()
    module.eval()
    try:
        with torch.no_grad():
            yield
    finally:
        tables.module.train(was_training)
        module.train(was_training)


def path_gap(tables: Tables, module: nn.Module, batch: Batch, task_weights_K: Tensor) -> float:
    """How much higher the loss of a global batch is as served than as trained, relative to the latter."""
    ways: tuple[Way, Way] = ("served", "trained")
    with evaluating(tables, module):
        losses = [
            multi_task_loss(
                logits(tables, module, batch, way),
                batch.labels_BK,
                batch.weight_B,
                task_weights_K,
                batch.global_weight,
            )[0]
            for way in ways
        ]
    served, trained = sum_over_ranks(torch.stack(losses)).tolist()
    return served / trained - 1
