"""Memory that the dense model takes on a rank beside the tables: its state, and what a step keeps for its backward."""

from functools import partial

import torch
from torch import nn

from rankmixer_dist.config import RunConfig
from rankmixer_dist.cost.memory import dense_state_bytes
from rankmixer_dist.embedded import Embedded, Events
from rankmixer_dist.layers.routing_report import RoutedRows
from rankmixer_dist.models.ranker import Ranker
from rankmixer_dist.train.activations import kept_bytes


def dense_bytes(config: RunConfig, model: Ranker, *, ranks: int, rows_per_rank: int, trains: bool) -> int:
    """Bytes of a rank: in training its state and what a step keeps, in scoring twice its fp32 weights.

    Args:
        model: on the meta device, whole. Of its backbone a rank of a group that shares out the tokens has its share.
    """
    parameters = _parameters(model)
    if not trains:
        return 2 * 4 * parameters
    size = config.parallel.expert_size
    backbone = _parameters(model.backbone) if size > 1 else 0
    dense = config.dense
    state_bytes = partial(
        dense_state_bytes,
        optimizer=dense.optimizer,
        zero_stage=dense.zero_stage,
        precision=dense.precision,
        engine=dense.engine,
    )
    state = state_bytes(parameters - backbone, ranks=ranks)
    state += state_bytes(-(-backbone // size), ranks=-(-ranks // size))
    return state + kept_for_backward(config, model, rows_per_rank)


def _parameters(module: nn.Module) -> int:
    return sum(parameter.numel() for parameter in module.parameters())


def kept_for_backward(config: RunConfig, model: Ranker, rows: int) -> int:
    """Bytes of the tensors that a training forward of so many rows leaves for the backward, its inputs among them.

    Counted by a forward on the meta device, which computes nothing: every tensor that autograd saves, each storage
    once, without the weights. Sequences are as long as they may be.
    """
    if config.dense.precision == "bf16":
        model = model.to(torch.bfloat16)
    features = model.features
    with torch.device("meta"):
        vectors = {spec.name: torch.empty(rows, spec.dim, requires_grad=True) for spec in features.fields}
        events = {
            spec.name: Events(
                torch.empty(rows * spec.max_length, spec.dim, requires_grad=True),
                offsets=torch.empty(rows + 1, dtype=torch.int32),
            )
            for spec in features.sequences
        }
        numerics = torch.empty(rows, len(features.numerics))
        routed = () if config.model.mixture is None else (RoutedRows.all_real(torch.ones(rows, dtype=torch.bool)),)
        return kept_bytes(
            lambda: model.train()(Embedded(vectors, events), numerics, *routed),
            besides=[*model.parameters(), *model.buffers()],
        )
