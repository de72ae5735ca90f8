"""Interaction modules: each turns T tokens into M new ones in its own way, token-major, [T, B, D] -> [M, B, D]."""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from rankmixer_dist.layers.cross import CrossLayer
from rankmixer_dist.layers.mlp import MLP
from rankmixer_dist.layers.sizes import check_sizes
from rankmixer_dist.layers.token_attention import attend
from rankmixer_dist.layers.token_linear import TokenLinear


class FactorizationBlock(nn.Module):
    """Wukong's FMB (arXiv 2403.02545): MLP(LN(flatten(X X' Y))), cut into M tokens.

    Y [T, k] stands for the full T x T matrix of dot products. X (X' Y) in this order costs 2 T D k multiply-adds a row
    instead of T^2 D. Y is a plain weight; the paper also tries one that depends on the input, without its details.

    Args:
        in_tokens: T.
        out_tokens: M.
        token_dim: D.
        rank: k, at most T.
        hidden_dims: widths of the MLP's hidden layers; the paper does not name their activation, ReLU here.

    Raises:
        ValueError: a size below 1, or k above T.
    """

    def __init__(
        self, *, in_tokens: int, out_tokens: int, token_dim: int, rank: int, hidden_dims: Sequence[int]
    ) -> None:
        super().__init__()
        check_sizes(in_tokens=in_tokens, out_tokens=out_tokens, token_dim=token_dim)
        if not 1 <= rank <= in_tokens:
            raise ValueError(f"rank {rank} must lie in 1..{in_tokens}, the number of tokens that it compresses")
        self.project = TokenLinear(in_tokens=in_tokens, out_tokens=rank)  # Y', [k, T]
        self.norm = nn.LayerNorm(in_tokens * rank)
        self.mlp = MLP(in_dim=in_tokens * rank, hidden_dims=hidden_dims, out_dim=out_tokens * token_dim)
        self.token_dim = token_dim

    def forward(self, x_TBD: Tensor) -> Tensor:
        """[T, B, D] -> [M, B, D]."""
        projected_BDk = self.project(x_TBD).permute(1, 2, 0)
        products_BTk = torch.bmm(x_TBD.transpose(0, 1), projected_BDk)
        tokens_BX = self.mlp(self.norm(products_BTk.flatten(1)))
        return tokens_BX.unflatten(1, (-1, self.token_dim)).transpose(0, 1)


class DotInteraction(nn.Module):
    """DLRM's dot products (arXiv 1906.00091) made tokens again: MLP(<x_s, x_t> for s <= t), cut into M tokens.

    Each pair once, and each token with itself, so that one token alone has a product too.

    Args:
        in_tokens: T.
        out_tokens: M.
        token_dim: D.
        hidden_dims: widths of the MLP's hidden layers.

    Raises:
        ValueError: a size below 1.
    """

    pairs: Tensor

    def __init__(self, *, in_tokens: int, out_tokens: int, token_dim: int, hidden_dims: Sequence[int]) -> None:
        super().__init__()
        check_sizes(in_tokens=in_tokens, out_tokens=out_tokens, token_dim=token_dim)
        first, second = torch.triu_indices(in_tokens, in_tokens)
        self.register_buffer("pairs", first * in_tokens + second, persistent=False)
        self.mlp = MLP(in_dim=self.pairs.numel(), hidden_dims=hidden_dims, out_dim=out_tokens * token_dim)
        self.token_dim = token_dim

    def forward(self, x_TBD: Tensor) -> Tensor:
        """[T, B, D] -> [M, B, D]."""
        products_BTT = torch.bmm(x_TBD.transpose(0, 1), x_TBD.permute(1, 2, 0))
        tokens_BX = self.mlp(products_BTT.flatten(1).index_select(1, self.pairs))
        return tokens_BX.unflatten(1, (-1, self.token_dim)).transpose(0, 1)


class CrossInteraction(nn.Module):
    """DCN's cross of the flattened tokens with themselves, x * (U (V' x) + b) + x, then W_m over tokens.

    Args:
        in_tokens: T.
        out_tokens: M.
        token_dim: D.
        rank: of the cross, at most T D.

    Raises:
        ValueError: a size below 1, or a rank above T D.
    """

    def __init__(self, *, in_tokens: int, out_tokens: int, token_dim: int, rank: int) -> None:
        super().__init__()
        self.cross = CrossLayer(width=in_tokens * token_dim, rank=rank)
        self.compress = TokenLinear(in_tokens=in_tokens, out_tokens=out_tokens)
        self.token_dim = token_dim

    def forward(self, x_TBD: Tensor) -> Tensor:
        """[T, B, D] -> [M, B, D]."""
        x_BW = x_TBD.transpose(0, 1).flatten(1)
        crossed_BTD = self.cross(x_BW, x_BW).unflatten(1, (-1, self.token_dim))
        return self.compress(crossed_BTD.transpose(0, 1))


class AttentionInteraction(nn.Module):
    """A post-norm transformer encoder layer (arXiv 1706.03762) without dropout, then W_m over tokens.

        S = LN(X + MultiHead(X)),   Y = LN(S + W_2 ReLU(W_1 S + b_1) + b_2)

    Args:
        in_tokens: T.
        out_tokens: M.
        token_dim: D, a multiple of the number of heads.
        num_heads: H.
        hidden_dim: F, between W_1 and W_2.

    Raises:
        ValueError: a size below 1, or D not a multiple of H.
    """

    def __init__(self, *, in_tokens: int, out_tokens: int, token_dim: int, num_heads: int, hidden_dim: int) -> None:
        super().__init__()
        check_sizes(in_tokens=in_tokens, token_dim=token_dim, num_heads=num_heads, hidden_dim=hidden_dim)
        if token_dim % num_heads:
            raise ValueError(f"token_dim {token_dim} is not a multiple of num_heads {num_heads}")
        self.num_heads = num_heads
        self.query_key_value = nn.Linear(token_dim, 3 * token_dim)
        self.project = nn.Linear(token_dim, token_dim)
        self.attention_norm = nn.LayerNorm(token_dim)
        self.up, self.down = nn.Linear(token_dim, hidden_dim), nn.Linear(hidden_dim, token_dim)
        self.ffn_norm = nn.LayerNorm(token_dim)
        self.compress = TokenLinear(in_tokens=in_tokens, out_tokens=out_tokens)

    def forward(self, x_TBD: Tensor) -> Tensor:
        """[T, B, D] -> [M, B, D]."""
        s_TBD = self.attention_norm(x_TBD + self.project(self._attend(x_TBD)))
        y_TBD = self.ffn_norm(s_TBD + self.down(F.relu(self.up(s_TBD))))
        return self.compress(y_TBD)

    def _attend(self, x_TBD: Tensor) -> Tensor:
        num_tokens, rows, token_dim = x_TBD.shape
        head_dim = token_dim // self.num_heads
        # Heads join the batch: N = B H.
        heads = [
            part.reshape(num_tokens, rows * self.num_heads, head_dim)
            for part in self.query_key_value(x_TBD).chunk(3, dim=2)
        ]
        query_NTd, key_NTd, value_NTd = (part.transpose(0, 1) for part in heads)
        return attend(query_NTd, key_NTd, value_NTd).transpose(0, 1).reshape(num_tokens, rows, token_dim)
