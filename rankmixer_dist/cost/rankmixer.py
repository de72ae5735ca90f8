"""RankMixer's backbone."""

from typing import Literal

from rankmixer_dist.cost.part import Part, part_of


def rankmixer_part(
    *, num_tokens: int, token_dim: int, num_blocks: int, hidden_dim: int, norm: Literal["post", "pre"] = "post"
) -> Part:
    """Backbone: L (T (2DF + F + D) + 4D) parameters, 2D more for pre-norm's last norm, and 4 L T D F FLOPs."""
    weights = 2 * token_dim * hidden_dim
    block = num_tokens * (weights + hidden_dim + token_dim) + 4 * token_dim
    final = 2 * token_dim if norm == "pre" else 0
    return part_of("backbone", parameters=num_blocks * block + final, products=num_blocks * num_tokens * weights)
