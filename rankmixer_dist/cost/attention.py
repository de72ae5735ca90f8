"""Backbones of attention between tokens. The width of all heads together is A = H d.

Beside the products with weights, both products of the attention itself are counted: scores, queries times keys, and
pooling, scores times values, T^2 A multiply-adds each. All their factors get gradients.
"""

from typing import Literal

from rankmixer_dist.cost.part import Part, part_of


def autoint_part(
    *, num_tokens: int, token_dim: int, num_layers: int = 3, num_heads: int = 2, head_dim: int | None = None
) -> Part:
    """AutoInt: 4 A (D + (L - 1) A) parameters, used by T tokens each, and L times the attention."""
    width = _width(token_dim, num_heads, head_dim)
    weights = 4 * width * (token_dim + (num_layers - 1) * width)
    products = num_tokens * weights + num_layers * _attention_products(num_tokens, width)
    return part_of("backbone", parameters=weights, products=products)


def hetero_attention_part(
    *,
    num_tokens: int,
    token_dim: int,
    num_blocks: int = 2,
    num_heads: int = 4,
    head_dim: int | None = None,
    hidden_dim: int | None = None,
    norm: Literal["post", "pre"] = "post",
) -> Part:
    """Per-token attention: L T (4DA + 3A + D) parameters, and those of the FFNs and norms."""
    return _stack(num_tokens, token_dim, num_blocks, 0, _width(token_dim, num_heads, head_dim), None, hidden_dim, norm)


def hiformer_part(
    *,
    num_tokens: int,
    token_dim: int,
    num_blocks: int = 2,
    num_heads: int = 4,
    head_dim: int | None = None,
    rank: int | None = None,
    hidden_dim: int | None = None,
    norm: Literal["post", "pre"] = "post",
) -> Part:
    """Composite attention: L T (3 T D A + 3A + AD + D) parameters, or 3 r (D + A) for 3 T D A, and FFNs and norms."""
    return _stack(num_tokens, token_dim, 0, num_blocks, _width(token_dim, num_heads, head_dim), rank, hidden_dim, norm)


def hhft_part(
    *,
    num_tokens: int,
    token_dim: int,
    num_hetero_blocks: int = 2,
    num_hiformer_blocks: int = 1,
    num_heads: int = 4,
    head_dim: int | None = None,
    rank: int | None = None,
    hidden_dim: int | None = None,
    norm: Literal["post", "pre"] = "post",
) -> Part:
    """The sum of n1 blocks of `hetero_attention_part` and n2 of `hiformer_part`."""
    width = _width(token_dim, num_heads, head_dim)
    return _stack(num_tokens, token_dim, num_hetero_blocks, num_hiformer_blocks, width, rank, hidden_dim, norm)


def _width(token_dim: int, num_heads: int, head_dim: int | None) -> int:
    return num_heads * (token_dim // num_heads if head_dim is None else head_dim)


def _attention_products(num_tokens: int, width: int) -> int:
    return 2 * num_tokens**2 * width


def _stack(
    num_tokens: int,
    token_dim: int,
    num_per_token: int,
    num_composite: int,
    width: int,
    rank: int | None,
    hidden_dim: int | None,
    norm: str,
) -> Part:
    hidden_dim = 4 * token_dim if hidden_dim is None else hidden_dim
    # Each weight of a per-token or composite map is used once a row.
    per_token = 3 * num_tokens * token_dim * width
    if rank is None:
        composite = 3 * num_tokens**2 * token_dim * width
    else:
        composite = 3 * num_tokens * rank * (token_dim + width)
    rest = num_tokens * (width * token_dim + 2 * token_dim * hidden_dim)
    biases = num_tokens * (3 * width + token_dim + hidden_dim + token_dim)
    num_blocks = num_per_token + num_composite
    weights = num_per_token * per_token + num_composite * composite + num_blocks * rest
    final = 2 * token_dim if norm == "pre" else 0
    return part_of(
        "backbone",
        parameters=weights + num_blocks * (biases + 4 * token_dim) + final,
        products=weights + num_blocks * _attention_products(num_tokens, width),
    )
