"""Semantic-group tokenizer: each group of features becomes one token or several."""

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from rankmixer_dist.layers.stacked_linear import StackedLinear


class GroupTokenizer(nn.Module):
    """Eq. 2 with semantic groups for chunks: x_t = W_t e_g + b_t for every token t of group g.

    Each token projects its whole group, so that no feature is cut in two. Groups of equal width share one
    `StackedLinear`, hence one batched GEMM a distinct width. Padding all groups to the widest would need one GEMM
    only, but would carry dead weights that are stored, reduced over ranks and updated by weight decay; buckets hold
    exactly sum_t (w_t + 1) D parameters and do no wasted work.

    Args:
        group_dims: w_g, the width of each group, in the order of the input's columns.
        group_tokens: the number of tokens of each group; T is their sum.
        token_dim: D.

    Raises:
        ValueError: lists of different or no length, or a size below 1.
    """

    def __init__(self, *, group_dims: Sequence[int], group_tokens: Sequence[int], token_dim: int) -> None:
        super().__init__()
        if len(group_dims) != len(group_tokens) or not group_dims:
            raise ValueError(
                f"give one width and one token count per group, not {len(group_dims)} and {len(group_tokens)}"
            )
        if min(*group_dims, *group_tokens, token_dim) < 1:
            raise ValueError("every group needs a width and a token count of at least 1, and so does token_dim")
        self.group_dims, self.group_tokens, self.token_dim = tuple(group_dims), tuple(group_tokens), token_dim
        self.num_tokens = sum(group_tokens)
        self.widths = tuple(sorted(set(group_dims)))
        # Per width: the group that each of the bucket's tokens reads.
        self._sources = [
            [g for g, dim in enumerate(group_dims) if dim == width for _ in range(group_tokens[g])]
            for width in self.widths
        ]
        self.projections = nn.ModuleList(
            StackedLinear(count=len(sources), in_dim=width, out_dim=token_dim)
            for width, sources in zip(self.widths, self._sources, strict=True)
        )
        # Per group, in token order: its bucket and where its tokens begin there.
        self._runs = [
            (self.widths.index(dim), self._sources[self.widths.index(dim)].index(g))
            for g, dim in enumerate(self.group_dims)
        ]

    @property
    def dtype(self) -> torch.dtype:
        """Of the weights, and what inputs must be cast to."""
        return next(self.parameters()).dtype

    def forward(self, x_BW: Tensor) -> Tensor:
        """[B, sum of group widths], features in group order -> x_BTD, a transposed view of token-major memory."""
        groups = x_BW.split(self.group_dims, dim=1)
        buckets = [
            project(torch.stack([groups[g] for g in sources]))
            for project, sources in zip(self.projections, self._sources, strict=True)
        ]
        if len(buckets) == 1:
            return buckets[0].transpose(0, 1)
        runs = [
            buckets[bucket].narrow(0, start, tokens)
            for (bucket, start), tokens in zip(self._runs, self.group_tokens, strict=True)
        ]
        return torch.cat(runs).transpose(0, 1)

    def extra_repr(self) -> str:
        return f"group_dims={self.group_dims}, group_tokens={self.group_tokens}, token_dim={self.token_dim}"
