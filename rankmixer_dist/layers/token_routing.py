"""Other ways from the tokens to their FFNs, which RankMixer's Table 3 compares with token mixing."""

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from rankmixer_dist.layers.stacked_linear import StackedLinear


class TokenSelfAttention(nn.Module):
    """Self-Attention: multi-head scaled dot-product attention between tokens, with projections that all tokens share.

    The paper does not describe it. At T 16, D 768 and k 2.8 (107 M parameters) this one adds 72 % FLOPs, and the paper
    reports +71.8 %; its +16 % parameters fit neither shared projections (+4 %) nor own ones for each token (+71 %).
    Scores are plain products: T is a few dozen, and a fused kernel would compute them again in the backward pass.

    Args:
        token_dim: D, a multiple of `num_heads`.
        num_heads: attention heads.

    Raises:
        ValueError: D is not a multiple of `num_heads`, or a size below 1.
    """

    def __init__(self, *, token_dim: int, num_heads: int) -> None:
        super().__init__()
        if token_dim < 1 or num_heads < 1:
            raise ValueError(f"token_dim {token_dim} and num_heads {num_heads} must be at least 1")
        if token_dim % num_heads:
            raise ValueError(f"token_dim {token_dim} is not a multiple of the {num_heads} attention heads")
        self.num_heads = num_heads
        self.qkv = nn.Linear(token_dim, 3 * token_dim)
        self.out = nn.Linear(token_dim, token_dim)

    def forward(self, x_TBD: Tensor) -> Tensor:
        """[T, B, D] -> [T, B, D]."""
        q, k, v = self.qkv(x_TBD).unflatten(2, (3, self.num_heads, -1)).permute(2, 1, 3, 0, 4)  # [B, heads, T, d] each
        weights_BhTT = torch.softmax(q @ k.transpose(2, 3) / math.sqrt(q.shape[3]), dim=3)
        return self.out((weights_BhTT @ v).permute(2, 0, 1, 3).flatten(2))


class ConcatMLP(nn.Module):
    """All-Concat-MLP: one MLP over all tokens side by side, whose output is split into tokens again.

    Takes the place of mixing and per-token FFN together: T D -> F -> T D has just the weights of T FFNs D -> F -> D,
    and the paper reports no more parameters, whereas one T D x T D matrix before the FFNs would be T / 2k times theirs.

    Args:
        num_tokens: T.
        token_dim: D.
        hidden_dim: F.

    Raises:
        ValueError: a size below 1.
    """

    def __init__(self, *, num_tokens: int, token_dim: int, hidden_dim: int) -> None:
        super().__init__()
        if min(num_tokens, token_dim, hidden_dim) < 1:
            raise ValueError(f"num_tokens {num_tokens}, token_dim {token_dim}, hidden_dim {hidden_dim}: below 1")
        self.up = nn.Linear(num_tokens * token_dim, hidden_dim)
        self.down = nn.Linear(hidden_dim, num_tokens * token_dim)

    def forward(self, x_TBD: Tensor) -> Tensor:
        """[T, B, D] -> [T, B, D]."""
        y_BX = self.down(F.gelu(self.up(x_TBD.transpose(0, 1).flatten(1))))
        return y_BX.unflatten(1, (x_TBD.shape[0], -1)).transpose(0, 1)


class AllShareFFN(nn.Module):
    """All-Share: no split; every token's own FFN reads all tokens side by side, T D -> hidden -> D.

    All FFNs read the same, so their first layers are one matrix product.

    Args:
        num_tokens: T.
        token_dim: D.
        hidden_dim: hidden width of each token's FFN.

    Raises:
        ValueError: a size below 1.
    """

    def __init__(self, *, num_tokens: int, token_dim: int, hidden_dim: int) -> None:
        super().__init__()
        if min(num_tokens, token_dim, hidden_dim) < 1:
            raise ValueError(f"num_tokens {num_tokens}, token_dim {token_dim}, hidden_dim {hidden_dim}: below 1")
        self.num_tokens = num_tokens
        self.up = nn.Linear(num_tokens * token_dim, num_tokens * hidden_dim)
        self.down = StackedLinear(count=num_tokens, in_dim=hidden_dim, out_dim=token_dim)

    def forward(self, x_TBD: Tensor) -> Tensor:
        """[T, B, D] -> [T, B, D]."""
        hidden_BX = F.gelu(self.up(x_TBD.transpose(0, 1).flatten(1)))
        return self.down(hidden_BX.unflatten(1, (self.num_tokens, -1)).transpose(0, 1))
