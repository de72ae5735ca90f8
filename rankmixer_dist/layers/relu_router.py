"""The ReLU router of RankMixer's sparse experts: each token decides by itself how many experts it uses."""

import math
from statistics import NormalDist
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from rankmixer_dist.layers.sizes import check_sizes
from rankmixer_dist.layers.stacked_linear import StackedLinear


class ReLURouter(nn.Module):
    """Eq. 10: G_tj = ReLU(h_t(s_t)_j), with a linear map h_t: D -> E of its own for every token.

    The paper leaves the initialisation open. Ours makes h, for inputs of unit mean square, which a norm before or after
    each layer sees to, about normal with variance s^2 and mean z s: W ~ U(-s sqrt(3 / D), s sqrt(3 / D)), b = z s. z is
    chosen so that gates are open with probability `open_share`, and s so that E[G^2] = 1 / E, which gives the sum of E
    experts, that start independent, the scale of one per-token FFN. Experts of F hidden units start at the same scale
    for any F. A penalty can close gates but not open them, and training closes some by itself (half of them fell to
    0.37 on the synthetic log), so start above the share that is wanted.

    A ReLU has no gradient where it is closed, so a gate that a penalty has closed for all rows stays closed. With
    `reopen`, a closed gate passes on gradients that would open it: those below 0, which say that the loss, penalty
    included, falls if the expert is used. That needs a dense evaluation, which knows what closed experts would do.

    Args:
        num_tokens: T.
        token_dim: D.
        num_experts: E.
        open_share: of the gates at the start, in (0, 1).
        reopen: whether closed gates can learn to open.

    Raises:
        ValueError: a size below 1, or a share outside (0, 1).
    """

    def __init__(
        self,
        *,
        num_tokens: int,
        token_dim: int,
        num_experts: int,
        open_share: float = 0.5,
        reopen: bool = False,
    ) -> None:
        super().__init__()
        self.reopen = reopen
        check_sizes(num_tokens=num_tokens, token_dim=token_dim, num_experts=num_experts)
        if not 0 < open_share < 1:
            raise ValueError(f"open_share {open_share} must lie between 0 and 1")
        mean, scale = _logits_at_start(open_share, num_experts)
        self.linear = StackedLinear(
            count=num_tokens, in_dim=token_dim, out_dim=num_experts, init_scale=math.sqrt(3) * scale
        )
        nn.init.constant_(self.linear.bias, mean)

    def forward(self, x_TBD: Tensor) -> Tensor:
        """Tokens [T, B, D] -> gates [T, B, E], at least 0."""
        logits_TBE = self.linear(x_TBD)
        return _ReopeningReLU.apply(logits_TBE) if self.reopen else F.relu(logits_TBE)


def _logits_at_start(open_share: float, num_experts: int) -> tuple[float, float]:
    """Mean z s and standard deviation s of normal logits: P(h > 0) = open_share and E[max(h, 0)^2] = 1 / E.

    E[max(h, 0)^2] = s^2 ((z^2 + 1) Phi(z) + z phi(z)), with Phi(z) = open_share.
    """
    normal = NormalDist()
    z = normal.inv_cdf(open_share)
    scale = 1 / math.sqrt(num_experts * ((z * z + 1) * open_share + z * normal.pdf(z)))
    return z * scale, scale


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
