"""Multi-head token mixing: the parameter-free exchange between tokens, and its inverse."""

from typing import Any

import torch
from torch import Tensor


def mix_tokens(x_TBD: Tensor, num_heads: int | None = None) -> Tensor:
    """Eq. 3-5: token h of the result is the concatenation of head h of all tokens.

        [x_t^1 | ... | x_t^H] = SplitHead(x_t),    s^h = Concat(x_1^h, ..., x_T^h)

    A permutation of each row's T * D values, and with H = T its own inverse. Token-major in and out: with T outermost,
    the mixing is the only copy in a block, since each token's GEMM then reads and writes contiguous memory.

    Args:
        x_TBD: [T, B, D], any strides.
        num_heads: H; T by default, which keeps the shape and so allows a residual.

    Returns:
        [H, B, T * D / H], contiguous.

    Raises:
        ValueError: D is not a multiple of H.
    """
    num_tokens, _, token_dim = x_TBD.shape
    num_heads = num_tokens if num_heads is None else num_heads
    check_mixable(num_tokens=num_tokens, token_dim=token_dim, num_heads=num_heads)
    x_TBHd = x_TBD.unflatten(2, (num_heads, token_dim // num_heads))
    return x_TBHd.permute(2, 1, 0, 3).contiguous().flatten(2)


def add_mixed(x_TBD: Tensor, y_TBD: Tensor) -> Tensor:
    """x + mix_tokens(y) with H = T, which reads y in the order of the result: the mixed copy is never written.

    For y = x, and then in the backward pass too, since mixing is its own inverse and so its own transpose.

    Args:
        x_TBD, y_TBD: [T, B, D], any strides.

    Raises:
        ValueError: D is not a multiple of T.
    """
    check_mixable(num_tokens=x_TBD.shape[0], token_dim=x_TBD.shape[2])
    return _MixedResidual.apply(x_TBD) if x_TBD is y_TBD else _sum_with_mixed(x_TBD, y_TBD)


def _sum_with_mixed(x_TBD: Tensor, y_TBD: Tensor) -> Tensor:
    num_tokens = x_TBD.shape[0]
    y_HBTd = y_TBD.unflatten(2, (num_tokens, -1)).permute(2, 1, 0, 3)
    return (x_TBD.unflatten(2, (num_tokens, -1)) + y_HBTd).flatten(2)


class _MixedResidual(torch.autograd.Function):
    """X + Mix(X)."""

    @staticmethod
    def forward(ctx: Any, x_TBD: Tensor) -> Tensor:
        return _sum_with_mixed(x_TBD, x_TBD)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> Tensor:
        return _MixedResidual.apply(gradients[0])


def revert_tokens(mixed_HBE: Tensor, num_tokens: int) -> Tensor:
    """The inverse of `mix_tokens` (arXiv 2602.06563): x_t = Concat(s^1_t, ..., s^H_t), s^h_t part t of mixed token h.

    Mixing the H mixed tokens with T heads is just that.

    Args:
        mixed_HBE: [H, B, E], any strides.
        num_tokens: T.

    Returns:
        [T, B, H * E / T], contiguous.

    Raises:
        ValueError: E is not a multiple of T.
    """
    return mix_tokens(mixed_HBE, num_tokens)


def check_mixable(*, num_tokens: int, token_dim: int, num_heads: int | None = None) -> None:
    """Raises ValueError unless T tokens of width D can be split into H (by default T) equal heads."""
    if num_tokens < 1 or token_dim < 1:
        raise ValueError(f"num_tokens {num_tokens} and token_dim {token_dim} must be at least 1")
    heads = num_tokens if num_heads is None else num_heads
    if heads < 1:
        raise ValueError(f"num_heads {heads} must be at least 1")
    if token_dim % heads:
        lower = token_dim - token_dim % heads
        options = f"{lower} or {lower + heads}" if lower else f"{heads}"
        what = f"{heads} tokens" if num_heads is None or num_heads == num_tokens else f"{heads} heads"
        raise ValueError(f"token_dim {token_dim} is not a multiple of the {what}, which mixing needs; use {options}")
