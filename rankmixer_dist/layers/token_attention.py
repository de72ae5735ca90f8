"""Self-attention between tokens: the shared arithmetic, and the two ways of Hiformer to get queries, keys and values.

Softmax attention is written out as two batched GEMMs: tokens are few (T is 16 or 32), so the [T, T] scores are small
beside the projections, and a FLOP counter sees both products on every device.
"""

import torch
from torch import Tensor, nn

from rankmixer_dist.layers.stacked_linear import StackedLinear


def attend(query_NTd: Tensor, key_NTd: Tensor, value_NTd: Tensor, *, scaled: bool = True) -> Tensor:
    """softmax_j(q_i k_j) v_j for N independent groups of T tokens, with q_i k_j / sqrt(d) if `scaled`.

    Args:
        query_NTd: [N, T, d], any strides, as the keys and values.

    Returns:
        [N, T, d], contiguous.
    """
    scores_NTT = torch.bmm(query_NTd, key_NTd.transpose(1, 2))
    if scaled:
        scores_NTT = scores_NTT * query_NTd.shape[2] ** -0.5
    return torch.bmm(scores_NTT.softmax(dim=2), value_NTd)


def head_width(*, num_tokens: int, token_dim: int, num_heads: int, head_dim: int | None) -> int:
    """d, or D / H where it is left out.

    Raises:
        ValueError: a size below 1, or no `head_dim` and D not a multiple of H.
    """
    if min(num_tokens, token_dim, num_heads) < 1:
        raise ValueError(
            f"num_tokens {num_tokens}, token_dim {token_dim} and num_heads {num_heads} must all be at least 1"
        )
    if head_dim is not None:
        if head_dim < 1:
            raise ValueError(f"head_dim {head_dim} must be at least 1")
        return head_dim
    if token_dim % num_heads:
        raise ValueError(
            f"token_dim {token_dim} is not a multiple of the {num_heads} heads; change num_heads or give head_dim"
        )
    return token_dim // num_heads


class PerTokenAttention(nn.Module):
    """Heterogeneous self-attention (arXiv 2311.05884): each token has its own Q, K, V and output projection.

        q_i = x_i Q_i,    k_j = x_j K_j,    v_j = x_j V_j    (per head)
        o_i = concat over heads of sum_j softmax_j(q_i k_j / sqrt(d)) v_j,    y_i = o_i O_i

    Hence the score of tokens i and j goes through a matrix Q_i K_j^T of that pair's own. All four maps have biases, as
    in the common Transformer layer. Columns of `qkv` are ordered (head, q|k|v, value), so that heads are views.

    Args:
        num_tokens: T.
        token_dim: D.
        num_heads: H.
        head_dim: d, width of a head.

    Raises:
        ValueError: a size below 1.
    """

    def __init__(self, *, num_tokens: int, token_dim: int, num_heads: int, head_dim: int) -> None:
        super().__init__()
        self.num_heads, self.head_dim = num_heads, head_dim
        width = num_heads * head_dim
        self.qkv = StackedLinear(count=num_tokens, in_dim=token_dim, out_dim=3 * width)
        self.out = StackedLinear(count=num_tokens, in_dim=width, out_dim=token_dim)

    def forward(self, x_TBD: Tensor) -> Tensor:
        """[T, B, D] -> [T, B, D]."""
        num_tokens, rows, _ = x_TBD.shape
        qkv_TN3d = self.qkv(x_TBD).view(num_tokens, rows * self.num_heads, 3, self.head_dim)
        query_NTd, key_NTd, value_NTd = (part.transpose(0, 1) for part in qkv_TN3d.unbind(dim=2))
        heads_NTd = attend(query_NTd, key_NTd, value_NTd)
        return self.out(heads_NTd.transpose(0, 1).reshape(num_tokens, rows, self.num_heads * self.head_dim))


class CompositeAttention(nn.Module):
    """Hiformer's attention (arXiv 2311.05884): queries, keys and values of each token are made of all tokens.

        [q_1 | ... | q_T] = [x_1 | ... | x_T] Q,    Q [T D, T d] per head; keys and values likewise

    and then as in `PerTokenAttention`. Block (s, t) of Q is a map of token s's own into the query of token t. With a
    rank r, each of the three maps is a product A C, with A [T D, r] and C [r, T H d]: T (D + H d) r weights instead of
    T^2 D H d. One A serves all heads, which keeps the GEMMs large. Columns of `up` are ordered (head, token, value).

    Args:
        num_tokens: T.
        token_dim: D.
        num_heads: H.
        head_dim: d, width of a head.
        rank: r, or None for full matrices.

    Raises:
        ValueError: a size below 1, or a rank above that of the full matrix.
    """

    def __init__(
        self, *, num_tokens: int, token_dim: int, num_heads: int, head_dim: int, rank: int | None = None
    ) -> None:
        super().__init__()
        self.num_heads, self.head_dim = num_heads, head_dim
        width = num_heads * head_dim
        check_rank(rank, num_tokens=num_tokens, token_dim=token_dim, width=width)
        self.rank = rank
        flat_dim, in_dim = num_tokens * token_dim, rank or num_tokens * token_dim
        self.down = nn.Linear(flat_dim, 3 * rank, bias=False) if rank else None
        self.up = StackedLinear(count=3, in_dim=in_dim, out_dim=num_tokens * width)
        self.out = StackedLinear(count=num_tokens, in_dim=width, out_dim=token_dim)

    def forward(self, x_TBD: Tensor) -> Tensor:
        """[T, B, D] -> [T, B, D]."""
        num_tokens, rows, _ = x_TBD.shape
        flat_BX = x_TBD.transpose(0, 1).flatten(1)
        if self.down is None:
            inputs_3BI = flat_BX.expand(3, -1, -1)
        else:
            inputs_3BI = self.down(flat_BX).unflatten(1, (3, -1)).transpose(0, 1)
        qkv_3NTd = self.up(inputs_3BI).view(3, rows * self.num_heads, num_tokens, self.head_dim)
        heads_NTd = attend(*qkv_3NTd.unbind(dim=0))
        return self.out(heads_NTd.transpose(0, 1).reshape(num_tokens, rows, self.num_heads * self.head_dim))


def check_rank(rank: int | None, *, num_tokens: int, token_dim: int, width: int) -> None:
    """Raises ValueError unless `rank` can be that of a [T D, T H d] matrix; `width` is H d."""
    full = num_tokens * min(token_dim, width)
    if rank is not None and not 1 <= rank <= full:
        raise ValueError(f"rank {rank} must be in 1..{full}, the rank of the full matrix, or null for full matrices")
