"""The Hiformer backbone (arXiv 2311.05884): attention whose queries, keys and values are composed of all tokens."""

from rankmixer_dist.layers.sizes import check_sizes
from rankmixer_dist.models.attention_stack import AttentionStack, Norm


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
