"""Wukong (arXiv 2403.02545): stacked factorization machines."""

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from rankmixer_dist.layers.interactions import FactorizationBlock
from rankmixer_dist.layers.mlp import MLP
from rankmixer_dist.layers.precision import widen
from rankmixer_dist.layers.routing_report import RoutedRows
from rankmixer_dist.layers.sizes import check_sizes
from rankmixer_dist.layers.token_linear import TokenLinear
from rankmixer_dist.models.backbone import Backbone, Pooled


class WukongLayer(nn.Module):
    """X_{i+1} = LN([FMB(X_i); LCB(X_i)] + X_i), with LCB(X) = W_L X.

    FMB gives num_fm tokens and LCB num_linear; where their sum is not the number of tokens that came in, the residual
    is W_R X_i, as the paper has it. One LayerNorm over D serves all tokens.

    Args:
        in_tokens: T.
        num_fm: n_F.
        num_linear: n_L.
        token_dim: D.
        rank: k of the FMB, at most T.
        fm_hidden_dims: hidden widths of the FMB's MLP.

    Raises:
        ValueError: a size below 1, or k above T.
    """

    def __init__(
        self,
        *,
        in_tokens: int,
        num_fm: int,
        num_linear: int,
        token_dim: int,
        rank: int,
        fm_hidden_dims: Sequence[int],
    ) -> None:
        super().__init__()
        self.fm = FactorizationBlock(
            in_tokens=in_tokens, out_tokens=num_fm, token_dim=token_dim, rank=rank, hidden_dims=fm_hidden_dims
        )
        self.linear = TokenLinear(in_tokens=in_tokens, out_tokens=num_linear)
        out_tokens = num_fm + num_linear
        same = out_tokens == in_tokens
        self.residual = nn.Identity() if same else TokenLinear(in_tokens=in_tokens, out_tokens=out_tokens)
        self.norm = nn.LayerNorm(token_dim)

    def forward(self, x_TBD: Tensor) -> Tensor:
        """[T, B, D] -> [n_F + n_L, B, D]."""
        return self.norm(torch.cat([self.fm(x_TBD), self.linear(x_TBD)]) + self.residual(x_TBD))


class Wukong(Backbone):
    """The interaction stack, then an MLP on its flattened tokens, which gives the pooled vector.

    Args:
        num_tokens: T.
        token_dim: D.
        num_layers: of the stack; layer l sees interactions of order up to 2^l.
        num_fm: n_F, tokens of each FMB; half of T by default.
        num_linear: n_L, tokens of each LCB; by default what keeps the number of tokens.
        rank: k; by default 24, or the number of tokens if that is less.
        fm_hidden_dims: hidden widths of each FMB's MLP.
        hidden_dims: widths of the last MLP; empty for the flattened tokens themselves.

    Raises:
        ValueError: k above the number of tokens of a layer, or a size below 1.
    """

    def __init__(
        self,
        *,
        num_tokens: int,
        token_dim: int,
        num_layers: int = 2,
        num_fm: int | None = None,
        num_linear: int | None = None,
        rank: int | None = None,
        fm_hidden_dims: Sequence[int] = (512,),
        hidden_dims: Sequence[int] = (512, 256),
    ) -> None:
        super().__init__()
        check_sizes(num_tokens=num_tokens, token_dim=token_dim, num_layers=num_layers)
        # One token cannot be shared out, so it becomes one of each.
        self.num_fm = max(1, num_tokens // 2) if num_fm is None else num_fm
        self.num_linear = max(1, num_tokens - self.num_fm) if num_linear is None else num_linear
        check_sizes(num_fm=self.num_fm, num_linear=self.num_linear)
        out_tokens = self.num_fm + self.num_linear
        counts = (num_tokens, *(out_tokens for _ in range(num_layers - 1)))
        self.rank = min(24, *counts) if rank is None else rank
        self.layers = nn.ModuleList(
            WukongLayer(
                in_tokens=in_tokens,
                num_fm=self.num_fm,
                num_linear=self.num_linear,
                token_dim=token_dim,
                rank=self.rank,
                fm_hidden_dims=fm_hidden_dims,
            )
            for in_tokens in counts
        )
        self.top = MLP(in_dim=out_tokens * token_dim, hidden_dims=hidden_dims)
        self.out_dim = self.top.out_dim

    def forward(self, x_BTD: Tensor, rows: RoutedRows | None = None) -> Pooled:
        """Tokens [B, T, D] -> pooled [B, out_dim]; free of copies at the door when x_BTD lies token-major in memory."""
        x_TBD = x_BTD.transpose(0, 1)
        for layer in self.layers:
            x_TBD = layer(x_TBD)
        return Pooled(widen(self.top(x_TBD.transpose(0, 1).flatten(1))))
