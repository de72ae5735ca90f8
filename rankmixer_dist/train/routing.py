"""The mixtures of experts of a run: their part of the loss, what steers it, and what their experts do."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from rankmixer_dist.batch import Batch
from rankmixer_dist.config import DTSIConfig, SoftmaxTopKConfig
from rankmixer_dist.layers.adaptive_lambda import AdaptiveLambda
from rankmixer_dist.layers.routing_report import RoutedRows, RoutingReport
from rankmixer_dist.parallel.topology import sum_over_ranks
from rankmixer_dist.pieces import Piece, whole
from rankmixer_dist.train.routing_counts import RoutingCounts, mixtures


class Routing:
    """Trains and watches the mixtures of `module`, which may be spread over ranks.

    All that depends on the batch depends on the global one, and which rows are served depends on their ids and the
    step alone: N ranks route, and change lambda, as one does, and a run that goes on needs lambda only.

    Args:
        moe: the section of the config.
        seed: of the draws.
    """

    def __init__(
        self, module: nn.Module, moe: DTSIConfig | SoftmaxTopKConfig, *, seed: int, device: torch.device
    ) -> None:
        self._layers, self._moe, self._seed = mixtures(module), moe, seed
        self._counts = RoutingCounts(self._layers)
        self._newest: Tensor | None = None
        self._lambda: AdaptiveLambda | None = None
        if isinstance(moe, DTSIConfig):
            self._lambda = AdaptiveLambda(
                target=moe.active_ratio,
                initial=moe.initial_lambda,
                alpha=moe.lambda_alpha,
                gain=moe.lambda_gain,
            ).to(device)

    def rows(self, batch: Batch, step: int) -> RoutedRows:
        """What the mixtures are told of a batch's rows in the step of this number."""
        real_B = batch.weight_B > 0
        if not isinstance(self._moe, DTSIConfig) or not self._moe.fusion.startswith("stochastic"):
            return RoutedRows(real_B, torch.zeros_like(real_B))
        by_row = self._moe.fusion == "stochastic_rows"
        draw_B = batch.row_id_B if by_row else torch.zeros_like(batch.row_id_B)
        return RoutedRows(real_B, drawn(draw_B, self._seed, step, self._moe.served_share))

    def loss(self, reports: Sequence[RoutingReport]) -> Tensor:
        """This rank's share of a batch's penalties; the sum over the ranks is a mean over the global batch."""
        counts = sum_over_ranks(self._counts.of(reports))
        self._newest = counts
        penalties, closed, distances = [], [], []
        for layer, report, (used_TE, rows) in zip(self._layers, reports, self._counts.own(counts), strict=True):
            penalties.append(layer.penalty(report, used_TE, rows))
            closed.append(report.closed / rows.clamp(min=1))
            distances.append(report.distance / rows.clamp(min=1))
        penalty = torch.stack(penalties).sum()
        if self._lambda is None:
            assert isinstance(self._moe, SoftmaxTopKConfig)
            return self._moe.balance_weight * penalty
        assert isinstance(self._moe, DTSIConfig)
        weight = self._moe.distillation_weight if self._moe.fusion == "straight_through" else 0.0
        return self._lambda(penalty, torch.stack(closed).sum()) + weight * torch.stack(distances).sum()

    def update(self) -> None:
        """Counts the batch of the last `loss`, and moves lambda by its active ratio; after the batch's step."""
        assert self._newest is not None
        self._counts.add(self._newest)
        if self._lambda is not None:
            self._lambda.update(self._counts.active_ratio(self._newest))

    def pieces(self) -> list[Piece]:
        """What steers lambda, for checkpoints."""
        return [] if self._lambda is None else [whole("routing/lambda", self._lambda.state)]

    def figures(self) -> dict[str, Any]:
        """What the experts did since the last call; the same on all ranks."""
        figures = self._counts.figures()
        if self._lambda is not None:
            figures["lambda"], figures["mu"] = self._lambda.coefficients.tolist()
            figures["target"] = self._lambda.target
        self._counts.clear()
        return figures


_GOLDEN, _FIRST, _SECOND = 0x9E3779B97F4A7C15, 0xBF58476D1CE4E5B9, 0x94D049BB133111EB


def drawn(row_id_B: Tensor, seed: int, step: int, share: float) -> Tensor:
    """[B] bool, that share of them true: a hash (splitmix64) of row, seed and step, whatever the row lies beside."""
    key = _scrambled(_scrambled(torch.tensor(_signed(seed))) ^ step)
    return _scrambled(row_id_B ^ int(key)) < int((share - 0.5) * (1 << 64))


def _scrambled(x: Tensor) -> Tensor:
    x = x + _signed(_GOLDEN)
    x = (x ^ _shifted(x, 30)) * _signed(_FIRST)
    x = (x ^ _shifted(x, 27)) * _signed(_SECOND)
    return x ^ _shifted(x, 31)


def _shifted(x: Tensor, bits: int) -> Tensor:
    """Right shift of int64 as if it were unsigned."""
    return (x >> bits) & ((1 << (64 - bits)) - 1)


def _signed(value: int) -> int:
    """The int64 with the lowest 64 bits of `value`."""
    value &= (1 << 64) - 1
    return value - (1 << 64) if value >> 63 else value
