"""The ReLU router of RankMixer's sparse experts: each token decides by itself how many experts it uses."""

import math
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from rankmixer_dist.layers.sizes import check_sizes
from rankmixer_dist.layers.stacked_linear import StackedLinear


class ReLURouter(nn.Module):
    """Eq. 10: G_tj = ReLU(h_t(s_t)_j), with a linear map h_t: D -> E of its own for every token.

    The paper leaves the initialisation open. Ours is W ~ U(-sqrt(6 / (E D)), sqrt(6 / (E D))) and b = 0. For inputs of
    unit mean square, which a norm before or after each layer sees to, h is then symmetric around 0 with variance 2 / E.
    So half the gates of every row are open at the start, which leaves each expert rows to learn from and the penalty
    little to do for targets up to 1/2; and E[G^2] = 1 / E, so that the sum of E experts, which start independent, has
    the scale of one per-token FFN. Experts of F hidden units start at the same scale for any F.

    A ReLU has no gradient where it is closed, so a gate that a penalty has closed for all rows stays closed. With
    `reopen`, a closed gate passes on gradients that would open it: those below 0, which say that the loss, penalty
    included, falls if the expert is used. That needs a dense evaluation, which knows what closed experts would do.

    Args:
        num_tokens: T.
        token_dim: D.
        num_experts: E.
        reopen: whether closed gates can learn to open.

    Raises:
        ValueError: a size below 1.
    """

    def __init__(self, *, num_tokens: int, token_dim: int, num_experts: int, reopen: bool = False) -> None:
        super().__init__()
        self.reopen = reopen
        check_sizes(num_tokens=num_tokens, token_dim=token_dim, num_experts=num_experts)
        self.linear = StackedLinear(
            count=num_tokens, in_dim=token_dim, out_dim=num_experts, init_scale=math.sqrt(6 / num_experts)
        )
        nn.init.zeros_(self.linear.bias)

    def forward(self, x_TBD: Tensor) -> Tensor:
        """Tokens [T, B, D] -> gates [T, B, E], at least 0."""
        logits_TBE = self.linear(x_TBD)
        return _ReopeningReLU.apply(logits_TBE) if self.reopen else F.relu(logits_TBE)


class _ReopeningReLU(torch.autograd.Function):
    """ReLU, with a gradient below 0 passed on where it is closed."""

    @staticmethod
    def forward(ctx: Any, logits: Tensor) -> Tensor:
        gates = F.relu(logits)
        ctx.save_for_backward(gates)
        return gates

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> Tensor:
        (gates,) = ctx.saved_tensors
        return grad.where((gates > 0) | (grad < 0), 0.0)
