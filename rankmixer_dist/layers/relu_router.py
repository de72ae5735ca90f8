"""The ReLU router of RankMixer's sparse experts: each token decides by itself how many experts it uses."""

import math
from statistics import NormalDist

import torch.nn.functional as F
from torch import Tensor, nn

from rankmixer_dist.layers.sizes import check_sizes
from rankmixer_dist.layers.stacked_linear import StackedLinear


class ReLURouter(nn.Module):
    """Eq. 10: G_tj = ReLU(h_t(s_t)_j), with a linear map h_t: D -> E of its own for every token.

    The paper leaves the initialisation open. Ours makes h, for inputs of unit mean square, which a norm before or after
    each layer sees to, about normal with variance s^2 and mean z s: W ~ U(-s sqrt(3 / D), s sqrt(3 / D)), b = z s. z is
    chosen so that gates are open with probability `open_share`, and s so that E[G^2] = 1 / E, which gives the sum of E
    experts, that start independent, the scale of one per-token FFN. Experts of F hidden units start at the same scale
    for any F.

    Args:
        num_tokens: T.
        token_dim: D.
        num_experts: E.
        open_share: of the gates at the start, in (0, 1).

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
    ) -> None:
        super().__init__()
        check_sizes(num_tokens=num_tokens, token_dim=token_dim, num_experts=num_experts)
        if not 0 < open_share < 1:
            raise ValueError(f"open_share {open_share} must lie between 0 and 1")
        mean, scale = _logits_at_start(open_share, num_experts)
        self.linear = StackedLinear(
            count=num_tokens, in_dim=token_dim, out_dim=num_experts, init_scale=math.sqrt(3) * scale
        )
        nn.init.constant_(self.linear.bias, mean)

    def logits(self, x_TBD: Tensor) -> Tensor:
        """h: tokens [T, B, D] -> [T, B, E]."""
        return self.linear(x_TBD)

    def forward(self, x_TBD: Tensor) -> Tensor:
        """Tokens [T, B, D] -> gates [T, B, E], at least 0."""
        return F.relu(self.logits(x_TBD))


def _logits_at_start(open_share: float, num_experts: int) -> tuple[float, float]:
    """Mean z s and standard deviation s of normal logits: P(h > 0) = open_share and E[max(h, 0)^2] = 1 / E.

    E[max(h, 0)^2] = s^2 ((z^2 + 1) Phi(z) + z phi(z)), with Phi(z) = open_share.
    """
    normal = NormalDist()
    z = normal.inv_cdf(open_share)
    scale = 1 / math.sqrt(num_experts * ((z * z + 1) * open_share + z * normal.pdf(z)))
    return z * scale, scale
