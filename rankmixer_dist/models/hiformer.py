"""The Hiformer backbone (arXiv 2311.05884): blocks of composite attention and per-token FFNs."""

from rankmixer_dist.layers.token_attention import CompositeAttention, head_width
from rankmixer_dist.models.attention_stack import AttentionStack, Norm


class Hiformer(AttentionStack):
    """L blocks of attention whose queries, keys and values are composed of all tokens, and per-token FFNs.

    Full matrices have 3 (T D) (T H d) weights a block, 453 M at T = 16 and D = H d = 768: give a `rank` at such sizes,
    as the paper does in production. Its second saving there, computing the last layer for the task tokens alone, has
    no counterpart here, since all backbones pool the mean over tokens. Open in what we know of the paper, and chosen
    here: LayerNorms as in the original Transformer (post), a bias on the composed values, GELU, one rank for queries,
    keys and values.

    Args:
        num_tokens: T.
        token_dim: D.
        num_blocks: L.
        num_heads: H; D must be a multiple of it unless `head_dim` is given.
        head_dim: d, width of a head; D / H by default.
        rank: r of the projections, in 1..T min(D, H d); None for full matrices.
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
        num_blocks: int = 2,
        num_heads: int = 4,
        head_dim: int | None = None,
        rank: int | None = None,
        hidden_dim: int | None = None,
        norm: Norm = "post",
    ) -> None:
        if num_blocks < 1:
            raise ValueError(f"num_blocks {num_blocks} must be at least 1")
        head_dim = head_width(num_tokens=num_tokens, token_dim=token_dim, num_heads=num_heads, head_dim=head_dim)
        super().__init__(
            num_tokens=num_tokens,
            token_dim=token_dim,
            attentions=[
                CompositeAttention(
                    num_tokens=num_tokens, token_dim=token_dim, num_heads=num_heads, head_dim=head_dim, rank=rank
                )
                for _ in range(num_blocks)
            ],
            hidden_dim=hidden_dim,
            norm=norm,
        )
        self.num_blocks, self.num_heads, self.head_dim, self.rank = num_blocks, num_heads, head_dim, rank
