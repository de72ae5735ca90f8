"""The HHFT backbone (arXiv 2511.20235): per-token attention blocks, then composite ones."""

from rankmixer_dist.layers.sizes import check_sizes
from rankmixer_dist.models.attention_stack import AttentionStack, Norm


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
