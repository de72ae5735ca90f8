"""Plain multi-layer perceptron."""

from collections.abc import Sequence
from itertools import pairwise

import torch.nn.functional as F
from torch import Tensor, nn


class MLP(nn.Module):
    """h_{i+1} = ReLU(W_i h_i + b_i) for every hidden width, then W h + b without activation if `out_dim` is given.

    With neither it passes its input through, so that "no hidden layers" needs no special case in the models.

    Args:
        in_dim: width of the input.
        hidden_dims: widths of the activated layers; may be empty.
        out_dim: width of a last linear layer; none by default.

    Attributes:
        out_dim: width of the output.

    Raises:
        ValueError: a size below 1.
    """

    def __init__(self, *, in_dim: int, hidden_dims: Sequence[int], out_dim: int | None = None) -> None:
        super().__init__()
        dims = (in_dim, *hidden_dims, *(() if out_dim is None else (out_dim,)))
        if min(dims) < 1:
            raise ValueError(f"hidden_dims {list(hidden_dims)} and the widths around them must all be at least 1")
        self.out_dim, self.num_activated = dims[-1], len(hidden_dims)
        self.layers = nn.ModuleList(nn.Linear(i, o) for i, o in pairwise(dims))

    def forward(self, x_BI: Tensor) -> Tensor:
        """[B, in_dim] -> [B, out_dim]."""
        for i, layer in enumerate(self.layers):
            x_BI = layer(x_BI)
            if i < self.num_activated:
                x_BI = F.relu(x_BI)
        return x_BI
