"""Backbones of attention between tokens that each have weights of their own: HeteroAttention, Hiformer and HHFT."""

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


class HeteroAttention(AttentionStack):
    """L blocks of per-token self-attention (arXiv 2311.05884, heterogeneous attention layer).

    A Transformer encoder with T times its weights and the same arithmetic. The paper appends a token a task and reads
    that; here all backbones pool the mean, so that they differ in nothing but their blocks.

    Args:
        num_blocks: L.

    All others, and what is raised: see `AttentionStack`.
    """

    def __init__(
        self,
        *,
        num_tokens: int,
        token_dim: int,
        num_blocks: int = 2,
        num_heads: int = 4,
        head_dim: int | None = None,
        hidden_dim: int | None = None,
        norm: Norm = "post",
    ) -> None:
        check_sizes(num_blocks=num_blocks)
        super().__init__(
            num_tokens=num_tokens,
            token_dim=token_dim,
            num_per_token=num_blocks,
            num_composite=0,
            num_heads=num_heads,
            head_dim=head_dim,
            rank=None,
            hidden_dim=hidden_dim,
            norm=norm,
        )


class Hiformer(AttentionStack):
    """L blocks of attention whose queries, keys and values are composed of all tokens (arXiv 2311.05884).

    Full matrices have 3 (T D) (T H d) weights a block, 453 M at T = 16 and D = H d = 768: give a `rank` at such sizes,
    as the paper does in production. Its second saving there, computing the last layer for the task tokens alone, has
    no counterpart here, since all backbones pool the mean over tokens.

    Args:
        num_blocks: L.

    All others, and what is raised: see `AttentionStack`.
    """

    def __init__(
        self,
        *,
        num_tokens: int,
        token_dim: int,
        num_blocks: int = 2,
        num_heads: int = 4,
        head_dim: int | None = None,
        rank: int | None = None,
        hidden_dim: int | None = None,
        norm: Norm = "post",
    ) -> None:
        check_sizes(num_blocks=num_blocks)
        super().__init__(
            num_tokens=num_tokens,
            token_dim=token_dim,
            num_per_token=0,
            num_composite=num_blocks,
            num_heads=num_heads,
            head_dim=head_dim,
            rank=rank,
            hidden_dim=hidden_dim,
            norm=norm,
        )


class HHFT(AttentionStack):
    """The Hierarchical Heterogeneous Feature Transformer (arXiv 2511.20235): n1 per-token, then n2 composite blocks.

    The paper's layer counts, widths, norms and pooling are not known to us; counts of 2 and 1 keep the costly composite
    layers few, and the rest is as in the two models that it stacks. The paper reports more from width than from depth,
    and more from weights in its Hiformer layers than in the others.

    Args:
        num_hetero_blocks: n1, at least 1; without any the model is `Hiformer`.
        num_hiformer_blocks: n2, at least 1; without any the model is `HeteroAttention`.

    All others, and what is raised: see `AttentionStack`.
    """

    def __init__(
        self,
        *,
        num_tokens: int,
        token_dim: int,
        num_hetero_blocks: int = 2,
        num_hiformer_blocks: int = 1,
        num_heads: int = 4,
        head_dim: int | None = None,
        rank: int | None = None,
        hidden_dim: int | None = None,
        norm: Norm = "post",
    ) -> None:
        check_sizes(num_hetero_blocks=num_hetero_blocks, num_hiformer_blocks=num_hiformer_blocks)
        super().__init__(
            num_tokens=num_tokens,
            token_dim=token_dim,
            num_per_token=num_hetero_blocks,
            num_composite=num_hiformer_blocks,
            num_heads=num_heads,
            head_dim=head_dim,
            rank=rank,
            hidden_dim=hidden_dim,
            norm=norm,
        )
