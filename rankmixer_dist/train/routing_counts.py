"""How often experts are used, layer by layer and token by token, over all ranks."""

from collections.abc import Iterator, Sequence
from typing import Any, Self

import torch
from torch import Tensor, nn

from rankmixer_dist.layers.per_token_moe import PerTokenMoE
from rankmixer_dist.layers.routing_report import RoutingReport
from rankmixer_dist.parallel.topology import sum_over_ranks
from rankmixer_dist.pieces import place_of


def mixtures(module: nn.Module) -> list[PerTokenMoE]:
    """The mixtures of experts of a model, in order of blocks."""
    return [layer for layer in module.modules() if isinstance(layer, PerTokenMoE)]


class RoutingCounts:
    """Sums of the layers' reports, as [L, T, 2 E + 1]: uses of each expert, its gates, and rows of the token.

    A rank that owns some tokens fills these in; the sum over the ranks then covers all tokens and rows.
    """

    def __init__(self, layers: Sequence[PerTokenMoE]) -> None:
        self._layers = list(layers)
        self._places = [place_of(layer.experts.up.weight) for layer in layers]
        self._num_experts = layers[0].experts.num_experts
        self._total: Tensor | None = None

    def of(self, reports: Sequence[RoutingReport]) -> Tensor:
        """This rank's counts of a batch, from the report of each layer."""
        counts_LTX = self._none()
        for layer, (report, place) in enumerate(zip(reports, self._places, strict=True)):
            rows_T1 = report.rows.to(torch.float32).expand(len(report.used_TE), 1)
            own = slice(place.first, place.first + len(report.used_TE))
            counts_LTX[layer, own] = torch.cat([report.used_TE.float(), report.gates_TE.float(), rows_T1], dim=1)
        return counts_LTX

    def own(self, counts_LTX: Tensor) -> Iterator[tuple[Tensor, Tensor]]:
        """For each layer, how many rows of a global batch use its own tokens' experts, and how many rows there are."""
        for layer, place, counts_TX in zip(self._layers, self._places, counts_LTX, strict=True):
            tokens = layer.experts.num_tokens
            used_TE = counts_TX[place.first : place.first + tokens, : self._num_experts]
            yield used_TE, counts_TX[place.first, -1]

    def add(self, counts_LTX: Tensor) -> None:
        """Counts of the global batch."""
        self._total = counts_LTX if self._total is None else self._total + counts_LTX

    def summed(self) -> Self:
        """What the ranks added together, each its own counts; all ranks call it."""
        if self._total is None:
            self._total = self._none()
        self._total = sum_over_ranks(self._total)
        return self

    def clear(self) -> None:
        """Begins anew."""
        self._total = None

    def active_ratio(self, counts_LTX: Tensor) -> Tensor:
        """Scalar, share of all gates that are open; NaN without rows."""
        return self._active_LT(counts_LTX).mean()

    def figures(self) -> dict[str, Any]:
        """Of all that was added.

        `active_ratio`, its mean over layers and tokens, and `active`, by `block.token`; `dead_experts` that no row
        used; `gate_scale`, the mean of the open gates.
        """
        if self._total is None:
            return {}
        total_LTX = self._total.double().cpu()
        used_LTE, gates_LTE, _ = total_LTX.split([self._num_experts, self._num_experts, 1], dim=2)
        active_LT = self._active_LT(total_LTX)
        return {
            "active_ratio": active_LT.mean().item(),
            "dead_experts": int((used_LTE == 0).sum()),
            "gate_scale": (gates_LTE.sum() / used_LTE.sum().clamp(min=1)).item(),
            "active": {
                f"{layer}.{token}": share
                for layer, shares in enumerate(active_LT.tolist())
                for token, share in enumerate(shares)
            },
        }

    def _none(self) -> Tensor:
        shape = (len(self._layers), self._places[0].shape[0], 2 * self._num_experts + 1)
        return torch.zeros(shape, device=self._layers[0].experts.up.weight.device)

    def _active_LT(self, counts_LTX: Tensor) -> Tensor:
        return counts_LTX[..., : self._num_experts].sum(dim=2) / (counts_LTX[..., -1] * self._num_experts)
