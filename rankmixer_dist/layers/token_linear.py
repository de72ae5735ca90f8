"""Linear maps along the token axis: every new token is a weighted sum of the old ones."""

import math

import torch
from torch import Tensor, nn

from rankmixer_dist.layers.sizes import check_sizes


class TokenLinear(nn.Module):
    """Y = W X with W [M, T]: token m of the result is sum_t W_mt x_t, without bias.

    Token-major tokens are a [T, B D] matrix, so that the whole batch is one plain GEMM.

    `weight` starts as that of `nn.Linear(T, M)`.

    Args:
        in_tokens: T.
        out_tokens: M.

    Raises:
        ValueError: a size below 1.
    """

    def __init__(self, *, in_tokens: int, out_tokens: int) -> None:
        super().__init__()
        check_sizes(in_tokens=in_tokens, out_tokens=out_tokens)
        self.weight = nn.Parameter(torch.empty(out_tokens, in_tokens))
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Draws the weights anew."""
        bound = 1 / math.sqrt(self.weight.shape[1])
        nn.init.uniform_(self.weight, -bound, bound)

    def forward(self, x_TBD: Tensor) -> Tensor:
        """[T, B, D] -> [M, B, D]; free of copies where x_TBD is contiguous."""
        return torch.mm(self.weight, x_TBD.flatten(1)).unflatten(1, x_TBD.shape[1:])

    def extra_repr(self) -> str:
        out_tokens, in_tokens = self.weight.shape
        return f"in_tokens={in_tokens}, out_tokens={out_tokens}"
