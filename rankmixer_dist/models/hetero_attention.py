"""The HeteroAttention backbone (arXiv 2311.05884): blocks of per-token self-attention."""

from rankmixer_dist.layers.sizes import check_sizes
from rankmixer_dist.models.attention_stack import AttentionStack, Norm


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
