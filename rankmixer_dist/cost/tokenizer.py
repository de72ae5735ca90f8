"""Tokenizers, by the names of `rankmixer_dist.layers.tokenizer`.

`hidden_dim` None stands for linear projections; the global token's MLP then is as wide inside as a token.
"""

from collections.abc import Sequence
from itertools import pairwise

from rankmixer_dist.cost.part import Part, part_of


def group_tokenizer_part(
    *,
    group_dims: Sequence[int],
    group_tokens: Sequence[int],
    token_dim: int,
    hidden_dim: int | None = None,
    global_token: bool = False,
) -> Part:
    """Sum over tokens of (w_g + 1) D parameters; with hidden layers, over groups of (w_g + 1) F, and T (F + 1) D."""
    tokens = sum(group_tokens)
    if hidden_dim is None:
        maps = [(dim, token_dim, count) for dim, count in zip(group_dims, group_tokens, strict=True)]
    else:
        maps = [*((dim, hidden_dim, 1) for dim in group_dims), (hidden_dim, token_dim, tokens)]
    return _part(maps, sum(group_dims), token_dim, hidden_dim, global_token)


def chunk_tokenizer_part(
    *, in_dim: int, num_chunks: int, token_dim: int, hidden_dim: int | None = None, global_token: bool = False
) -> Part:
    """N (d + 1) D parameters, d = W / N rounded up; with hidden layers, N ((d + 1) F + (F + 1) D)."""
    chunk_dim = -(-in_dim // num_chunks)
    dims = (chunk_dim, token_dim) if hidden_dim is None else (chunk_dim, hidden_dim, token_dim)
    maps = [(i, o, num_chunks) for i, o in pairwise(dims)]
    return _part(maps, in_dim, token_dim, hidden_dim, global_token)


def auto_split_tokenizer_part(
    *, in_dim: int, num_splits: int, token_dim: int, hidden_dim: int | None = None, global_token: bool = False
) -> Part:
    """(W + 1) N D parameters; with a hidden layer, (W + 1) F + (F + 1) N D."""
    out_dim = num_splits * token_dim
    dims = (in_dim, out_dim) if hidden_dim is None else (in_dim, hidden_dim, out_dim)
    maps = [(i, o, 1) for i, o in pairwise(dims)]
    return _part(maps, in_dim, token_dim, hidden_dim, global_token)


def _part(
    maps: list[tuple[int, int, int]], in_dim: int, token_dim: int, hidden_dim: int | None, global_token: bool
) -> Part:
    """The cost of linear maps, given as (in, out, how many of them), and of the global token."""
    if global_token:
        hidden = hidden_dim or token_dim
        maps = [*maps, (in_dim, hidden, 1), (hidden, token_dim, 1)]
    return part_of(
        "tokenizer",
        parameters=sum((i + 1) * o * count for i, o, count in maps),
        products=sum(i * o * count for i, o, count in maps),
    )
