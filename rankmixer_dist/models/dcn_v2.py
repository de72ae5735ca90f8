"""DCN-V2 (arXiv 2008.13535): a cross network and an MLP on the flattened tokens."""

from collections.abc import Sequence
from typing import Literal

import torch
from torch import Tensor, nn

from rankmixer_dist.layers.cross import CrossLayer, CrossNetwork, MixtureCrossLayer
from rankmixer_dist.layers.mlp import MLP
from rankmixer_dist.layers.precision import widen
from rankmixer_dist.layers.routing_report import RoutedRows
from rankmixer_dist.layers.sizes import check_sizes
from rankmixer_dist.models.backbone import Backbone, Pooled

Structure = Literal["parallel", "stacked"]
"""parallel: cross network and MLP both read the tokens. stacked: the MLP reads what the cross network found."""


class DCNv2(Backbone):
    """Pooled = [Cross(x); MLP(x)] in parallel, or MLP(Cross(x)) stacked, with x = flatten(X) (section 3.4).

    Which structure wins depends on the data, says the paper. Parallel is the default because the heads then see the
    crosses themselves and neither half waits for the other; it makes the pooled vector T D wider. The full matrices
    are the default because they are the model as such, without a rank to choose; they hold (T D)^2 weights a layer,
    so that beyond a few thousand columns a rank is needed (the paper finds width / 4 as good, and goes far below).

    Args:
        num_tokens: T.
        token_dim: D.
        num_layers: of the cross network.
        rank: factor every W into U V' of this rank; None for full matrices.
        num_experts: more than one for the mixture of low-rank experts, which needs a rank.
        hidden_dims: widths of the MLP; empty for the cross network alone.
        structure: "parallel" or "stacked".

    Raises:
        ValueError: unknown structure, experts without a rank, a rank outside 1..T D, or a size below 1.
    """

    def __init__(
        self,
        *,
        num_tokens: int,
        token_dim: int,
        num_layers: int = 3,
        rank: int | None = None,
        num_experts: int = 1,
        hidden_dims: Sequence[int] = (512, 256),
        structure: Structure = "parallel",
    ) -> None:
        super().__init__()
        check_sizes(num_tokens=num_tokens, token_dim=token_dim, num_layers=num_layers, num_experts=num_experts)
        if structure not in ("parallel", "stacked"):
            raise ValueError(f"structure {structure!r} is unknown; use 'parallel' or 'stacked'")
        if num_experts > 1 and rank is None:
            raise ValueError(f"num_experts {num_experts} needs a rank: the experts of the mixture are low-rank")
        self.rank, self.num_experts = rank, num_experts
        width = num_tokens * token_dim
        self.cross = CrossNetwork(self._layer(width) for _ in range(num_layers))
        self.deep = MLP(in_dim=width, hidden_dims=hidden_dims)
        self.parallel = structure == "parallel" and bool(hidden_dims)
        self.out_dim = width + self.deep.out_dim if self.parallel else self.deep.out_dim

    def _layer(self, width: int) -> nn.Module:
        if self.rank is None or self.num_experts == 1:
            return CrossLayer(width=width, rank=self.rank)
        return MixtureCrossLayer(width=width, rank=self.rank, num_experts=self.num_experts)

    def forward(self, x_BTD: Tensor, rows: RoutedRows | None = None) -> Pooled:
        """Tokens [B, T, D] -> pooled [B, out_dim]; in parallel the crosses come first."""
        x_BW = x_BTD.flatten(1)
        crossed_BW = self.cross(x_BW)
        if self.parallel:
            return Pooled(widen(torch.cat([crossed_BW, self.deep(x_BW)], dim=1)))
        return Pooled(widen(self.deep(crossed_BW)))
