"""Attention between tokens that each have weights of their own, block on block: what three backbones share."""

from typing import Literal

import torch
from torch import Tensor, nn

from rankmixer_dist.layers.attention_block import AttentionBlock
from rankmixer_dist.layers.per_token_ffn import PerTokenFFN
from rankmixer_dist.layers.routing_report import RoutedRows
from rankmixer_dist.layers.sizes import check_sizes
from rankmixer_dist.layers.token_attention import CompositeAttention, PerTokenAttention, head_width
from rankmixer_dist.models.backbone import Backbone, Pooled

Norm = Literal["post", "pre"]
"""post: LN(x + f(x)), the Transformer's. pre: x + f(LN(x)), which trains deep stacks more easily."""


class AttentionStack(Backbone):
    """Blocks of per-token attention, then of composite attention, all with per-token FFNs, then the mean over tokens.

    With pre-norm, a final LayerNorm stands before the mean. Token-major inside, and pooled in fp32 or wider, for the
    reasons given at `RankMixer`. Open in what we know of the papers, and chosen here: LayerNorms as in the original
    Transformer (post), biases everywhere, GELU, one rank for queries, keys and values.

    Args:
        num_tokens: T.
        token_dim: D.
        num_per_token: blocks of `PerTokenAttention`.
        num_composite: blocks of `CompositeAttention`, which follow.
        num_heads: H; D must be a multiple of it unless `head_dim` is given.
        head_dim: d, width of a head; D / H by default.
        rank: r of the composite projections, in 1..T min(D, H d); None for full matrices.
        hidden_dim: F, hidden width of the per-token FFNs; 4 D by default.
        norm: "post" or "pre".

    Raises:
        ValueError: D is not a multiple of H and `head_dim` is not given, a rank out of range, unknown `norm`, or a size
            below 1.
    """

    def __init__(
        self,
        *,
        num_tokens: int,
        token_dim: int,
        num_per_token: int,
        num_composite: int,
        num_heads: int,
        head_dim: int | None,
        rank: int | None,
        hidden_dim: int | None,
        norm: Norm,
    ) -> None:
        super().__init__()
        head_dim = head_width(num_tokens=num_tokens, token_dim=token_dim, num_heads=num_heads, head_dim=head_dim)
        hidden_dim = 4 * token_dim if hidden_dim is None else hidden_dim
        check_sizes(hidden_dim=hidden_dim)
        sizes = {"num_tokens": num_tokens, "token_dim": token_dim, "num_heads": num_heads, "head_dim": head_dim}
        attentions: list[nn.Module] = [PerTokenAttention(**sizes) for _ in range(num_per_token)]
        attentions += [CompositeAttention(**sizes, rank=rank) for _ in range(num_composite)]
        self.num_heads = num_heads
        self.out_dim = token_dim
        self.blocks = nn.ModuleList(
            AttentionBlock(
                token_dim=token_dim,
                attention=attention,
                ffn=PerTokenFFN(num_tokens=num_tokens, token_dim=token_dim, hidden_dim=hidden_dim),
                norm=norm,
            )
            for attention in attentions
        )
        self.final_norm = nn.LayerNorm(token_dim) if norm == "pre" else nn.Identity()

    def forward(self, x_BTD: Tensor, rows: RoutedRows | None = None) -> Pooled:
        """Tokens [B, T, D] -> pooled [B, D]."""
        x_TBD = x_BTD.transpose(0, 1)
        for block in self.blocks:
            x_TBD = block(x_TBD)
        return Pooled(self.final_norm(x_TBD).mean(dim=0, dtype=torch.promote_types(x_TBD.dtype, torch.float32)))
