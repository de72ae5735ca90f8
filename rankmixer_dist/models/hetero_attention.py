"""The heterogeneous attention backbone: blocks in which every token has its own projections and FFN."""

from rankmixer_dist.layers.token_attention import PerTokenAttention, head_width
from rankmixer_dist.models.attention_stack import AttentionStack, Norm


class HeteroAttention(AttentionStack):
    """L blocks of per-token self-attention and per-token FFN (arXiv 2311.05884, heterogeneous attention layer).

    A Transformer encoder with T times its weights and the same arithmetic. Open in what we know of the paper, and
    chosen here: LayerNorms as in the original Transformer (post), biases everywhere, GELU. The paper appends a token a
    task and reads that; here all backbones pool the mean, so that they differ in nothing but their blocks.

    Args:
        num_tokens: T.
        token_dim: D.
        num_blocks: L.
        num_heads: H; D must be a multiple of it unless `head_dim` is given.
        head_dim: d, width of a head; D / H by default.
        hidden_dim: F, hidden width of the per-token FFN; 4 D by default.
        norm: "post" or "pre".

    Raises:
        ValueError: D is not a multiple of H and `head_dim` is not given, unknown `norm`, or a size below 1.
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
        if num_blocks < 1:
            raise ValueError(f"num_blocks {num_blocks} must be at least 1")
        head_dim = head_width(num_tokens=num_tokens, token_dim=token_dim, num_heads=num_heads, head_dim=head_dim)
        super().__init__(
            num_tokens=num_tokens,
            token_dim=token_dim,
            attentions=[
                PerTokenAttention(num_tokens=num_tokens, token_dim=token_dim, num_heads=num_heads, head_dim=head_dim)
                for _ in range(num_blocks)
            ],
            hidden_dim=hidden_dim,
            norm=norm,
        )
        self.num_blocks, self.num_heads, self.head_dim = num_blocks, num_heads, head_dim
