"""TokenMixer-Large's backbone."""

from rankmixer_dist.cost.part import Part, part_of


def tokenmixer_large_part(
    *, num_tokens: int, token_dim: int, num_blocks: int, hidden_dim: int, num_heads: int | None = None
) -> Part:
    """Backbone: L (6 T D F + D + T D / H) + D parameters and 12 L T D F FLOPs; H moves only the norms' share.

    The gates' element-wise products are left out, as all activations are.
    """
    weights = 6 * num_tokens * token_dim * hidden_dim
    mixed_dim = num_tokens * token_dim // (num_heads or num_tokens)
    parameters = num_blocks * (weights + token_dim + mixed_dim) + token_dim
    return part_of("backbone", parameters=parameters, products=num_blocks * weights)
