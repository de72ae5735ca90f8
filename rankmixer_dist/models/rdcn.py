"""RDCN, the Residual DCN of LiRank (arXiv 2402.06859): low-rank cross networks, one of them with attention."""

from collections.abc import Sequence

import torch
from torch import Tensor

from rankmixer_dist.layers.cross import AttentionCrossLayer, CrossLayer, CrossNetwork
from rankmixer_dist.layers.mlp import MLP
from rankmixer_dist.layers.precision import widen
from rankmixer_dist.layers.routing_report import RoutedRows
from rankmixer_dist.layers.sizes import check_sizes
from rankmixer_dist.models.backbone import Backbone, Pooled


class RDCN(Backbone):
    """Pooled = [AttentionCross(x); Cross(x); MLP(x)], x = flatten(X).

    LiRank's best form sets a low-rank cross network beside one with attention, which is the default here, and both
    beside an MLP. It gives neither ranks nor the wiring of the three; side by side, as in DCN-V2's parallel form, is
    our choice. RankMixer's Table 1 lists RDCN at DCN-V2's size without saying more.

    Args:
        num_tokens: T.
        token_dim: D.
        num_layers: of each cross network.
        rank: of all cross layers, at most T D.
        slot_dim: width of the pieces that attend to each other, a divisor of the rank (see `AttentionCrossLayer`).
        temperature: of the attention.
        plain_cross: keep the cross network without attention beside the other.
        hidden_dims: widths of the MLP; empty for none.

    Raises:
        ValueError: a rank outside 1..T D or not a multiple of slot_dim, temperature <= 0, or a size below 1.
    """

    def __init__(
        self,
        *,
        num_tokens: int,
        token_dim: int,
        num_layers: int = 3,
        rank: int = 64,
        slot_dim: int = 1,
        temperature: float = 1.0,
        plain_cross: bool = True,
        hidden_dims: Sequence[int] = (512, 256),
    ) -> None:
        super().__init__()
        check_sizes(num_tokens=num_tokens, token_dim=token_dim, num_layers=num_layers)
        width = num_tokens * token_dim
        self.attention_cross = CrossNetwork(
            AttentionCrossLayer(width=width, rank=rank, slot_dim=slot_dim, temperature=temperature)
            for _ in range(num_layers)
        )
        plain = (CrossLayer(width=width, rank=rank) for _ in range(num_layers))
        self.cross = CrossNetwork(plain) if plain_cross else None
        self.deep = MLP(in_dim=width, hidden_dims=hidden_dims) if hidden_dims else None
        self.out_dim = width + (width if plain_cross else 0) + (self.deep.out_dim if self.deep else 0)

    def forward(self, x_BTD: Tensor, rows: RoutedRows | None = None) -> Pooled:
        """Tokens [B, T, D] -> pooled [B, out_dim]."""
        x_BW = x_BTD.flatten(1)
        branches = [branch for branch in (self.attention_cross, self.cross, self.deep) if branch is not None]
        return Pooled(widen(torch.cat([branch(x_BW) for branch in branches], dim=1)))
