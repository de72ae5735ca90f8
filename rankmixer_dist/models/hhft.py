"""HHFT, the Hierarchical Heterogeneous Feature Transformer (arXiv 2511.20235): per-token, then composite attention."""

from rankmixer_dist.layers.token_attention import CompositeAttention, PerTokenAttention, head_width
from rankmixer_dist.models.attention_stack import AttentionStack, Norm


class HHFT(AttentionStack):
    """n1 blocks as in `HeteroAttention`, then n2 blocks as in `Hiformer`, all with per-token FFNs.

    The paper's layer counts, widths, norms and pooling are not known to us; counts of 2 and 1 keep the costly composite
    layers few, and the rest is as in the two models that it stacks. The paper reports more from width than from depth,
    and more from weights in its Hiformer layers than in the others.

    Args:
        num_tokens: T.
        token_dim: D.
        num_hetero_blocks: n1, at least 1; without any the model is `Hiformer`.
        num_hiformer_blocks: n2, at least 1; without any the model is `HeteroAttention`.
        num_heads: H; D must be a multiple of it unless `head_dim` is given.
        head_dim: d, width of a head; D / H by default.
        rank: r of the composite projections, in 1..T min(D, H d); None for full matrices.
        hidden_dim: F, hidden width of the per-token FFN; 4 D by default.
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
        num_hetero_blocks: int = 2,
        num_hiformer_blocks: int = 1,
        num_heads: int = 4,
        head_dim: int | None = None,
        rank: int | None = None,
        hidden_dim: int | None = None,
        norm: Norm = "post",
    ) -> None:
        if num_hetero_blocks < 1:
            raise ValueError(f"num_hetero_blocks {num_hetero_blocks} must be at least 1; without any, use Hiformer")
        if num_hiformer_blocks < 1:
            raise ValueError(
                f"num_hiformer_blocks {num_hiformer_blocks} must be at least 1; without any, use HeteroAttention"
            )
        head_dim = head_width(num_tokens=num_tokens, token_dim=token_dim, num_heads=num_heads, head_dim=head_dim)
        per_token = [
            PerTokenAttention(num_tokens=num_tokens, token_dim=token_dim, num_heads=num_heads, head_dim=head_dim)
            for _ in range(num_hetero_blocks)
        ]
        composite = [
            CompositeAttention(
                num_tokens=num_tokens, token_dim=token_dim, num_heads=num_heads, head_dim=head_dim, rank=rank
            )
            for _ in range(num_hiformer_blocks)
        ]
        super().__init__(
            num_tokens=num_tokens,
            token_dim=token_dim,
            attentions=[*per_token, *composite],
            hidden_dim=hidden_dim,
            norm=norm,
        )
        self.num_hetero_blocks, self.num_hiformer_blocks = num_hetero_blocks, num_hiformer_blocks
        self.num_heads, self.head_dim, self.rank = num_heads, head_dim, rank
