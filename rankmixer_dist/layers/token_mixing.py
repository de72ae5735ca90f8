"""Multi-head token mixing: the parameter-free exchange between tokens."""

from torch import Tensor


def mix_tokens(x_TBD: Tensor) -> Tensor:
    """Eq. 3-5 with H = T: token h of the result is the concatenation of head h of all tokens.

        [x_t^1 | ... | x_t^H] = SplitHead(x_t),    s^h = Concat(x_1^h, ..., x_T^h)

    A permutation of each row's T * D values, and its own inverse. Token-major in and out: with T outermost, the
    mixing is the only copy in a block, since each token's GEMM then reads and writes contiguous memory.

    Args:
        x_TBD: [T, B, D], any strides.

    Returns:
        [T, B, D], contiguous.

    Raises:
        ValueError: D is not a multiple of T.
    """
    num_tokens, _, token_dim = x_TBD.shape
    check_mixable(num_tokens=num_tokens, token_dim=token_dim)
    x_TBHd = x_TBD.unflatten(2, (num_tokens, token_dim // num_tokens))
    return x_TBHd.permute(2, 1, 0, 3).contiguous().flatten(2)


def check_mixable(*, num_tokens: int, token_dim: int) -> None:
    """Raises ValueError unless T tokens of width D can be split into T equal heads."""
    if num_tokens < 1 or token_dim < 1:
        raise ValueError(f"num_tokens {num_tokens} and token_dim {token_dim} must be at least 1")
    if token_dim % num_tokens:
        lower = token_dim - token_dim % num_tokens
        options = f"{lower} or {lower + num_tokens}" if lower else f"{num_tokens}"
        raise ValueError(
            f"token_dim {token_dim} is not a multiple of the {num_tokens} tokens, which mixing needs; use {options}"
        )
