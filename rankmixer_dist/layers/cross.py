"""Cross layers: x_{l+1} = x_0 * f(x_l) + x_l, with a full, a factored, a mixed or an attending f."""

import math
from collections.abc import Iterable

import torch
from torch import Tensor, nn

from rankmixer_dist.layers.sizes import check_rank, check_sizes


class CrossLayer(nn.Module):
    """DCN-V2 (arXiv 2008.13535): f(x) = W x + b (section 3.2), or U (V' x) + b with `rank` (section 3.5).

    Args:
        width: of x_0 and x_l.
        rank: columns of U and V; None for the full W.

    Raises:
        ValueError: a width below 1, or a rank outside 1..width.
    """

    def __init__(self, *, width: int, rank: int | None = None) -> None:
        super().__init__()
        check_sizes(width=width)
        if rank is not None:
            check_rank(rank=rank, width=width)
        self.down = nn.Identity() if rank is None else nn.Linear(width, rank, bias=False)
        self.up = nn.Linear(width if rank is None else rank, width)

    def forward(self, x0_BW: Tensor, x_BW: Tensor) -> Tensor:
        """[B, W], [B, W] -> [B, W]."""
        return torch.addcmul(x_BW, x0_BW, self.up(self.down(x_BW)))


class MixtureCrossLayer(nn.Module):
    """DCN-V2's mixture of low-rank experts (section 3.5): f(x) = sum_e G_e(x) (U_e g(C_e g(V_e' x)) + b).

    G is a softmax over experts of a linear map without bias, and g is tanh; the paper leaves both open. As tanh is
    bounded, each layer adds at most a multiple of x_0, and a deep stack cannot blow up as powers of x_0 do.

    As the gates of a row sum to one, b stands outside the sum, and the sum itself is one product of all U_e side by
    side with the gated values: two plain GEMMs and a small batched one, whatever the number of experts.

    Args:
        width: of x_0 and x_l.
        rank: columns of each U_e and V_e.
        num_experts: E.

    Raises:
        ValueError: a size below 1, a rank above the width, or fewer than two experts.
    """

    def __init__(self, *, width: int, rank: int, num_experts: int) -> None:
        super().__init__()
        check_sizes(width=width)
        check_rank(rank=rank, width=width)
        if num_experts < 2:
            raise ValueError(f"num_experts {num_experts} is no mixture; use at least 2, or a CrossLayer with a rank")
        self.rank, self.num_experts = rank, num_experts
        self.gate = nn.Linear(width, num_experts, bias=False)
        self.down = nn.Linear(width, num_experts * rank, bias=False)
        self.core = nn.Parameter(torch.empty(num_experts, rank, rank))  # [E, in, out]
        self.up = nn.Linear(num_experts * rank, width)
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Draws core and up anew, each expert's slice by its own fan-in, the rank."""
        bound = 1 / math.sqrt(self.rank)
        for parameter in (self.core, self.up.weight, self.up.bias):
            nn.init.uniform_(parameter, -bound, bound)

    def forward(self, x0_BW: Tensor, x_BW: Tensor) -> Tensor:
        """[B, W], [B, W] -> [B, W]."""
        h_BER = self.down(x_BW).unflatten(1, (self.num_experts, self.rank)).tanh()
        h_BER = torch.bmm(h_BER.transpose(0, 1), self.core).tanh().transpose(0, 1)
        gated_BER = h_BER * self.gate(x_BW).softmax(dim=1).unsqueeze(2)
        return torch.addcmul(x_BW, x0_BW, self.up(gated_BER.flatten(1)))


class AttentionCrossLayer(nn.Module):
    """Residual DCN (LiRank, arXiv 2402.06859): attention with a skip connection between the two low-rank maps.

        f(x) = U (A v + v) + b,   A = softmax(q k' / (tau sqrt(S))),   q, k, v = V_q' x, V_k' x, V_v' x

    The paper puts three copies of the low-rank map for one, as query, key and value. It does not write out what
    attends to what; that the layer falls back to the plain one where A is the identity leaves the `rank` values of a
    row. Here they are cut into slots of S values, S = 1 being that reading; wider slots cost rank^2 / S instead of
    rank^2 a row in both products, and S times less memory for A. The skip goes around the attention, since x_l has
    one already.

    Args:
        width: of x_0 and x_l.
        rank: columns of U and each V.
        slot_dim: S, a divisor of the rank.
        temperature: tau; the paper tunes it, without giving a value.

    Raises:
        ValueError: a size below 1, a rank above the width or not a multiple of slot_dim, or temperature <= 0.
    """

    def __init__(self, *, width: int, rank: int, slot_dim: int = 1, temperature: float = 1.0) -> None:
        super().__init__()
        check_sizes(width=width, slot_dim=slot_dim)
        check_rank(rank=rank, width=width)
        if rank % slot_dim:
            raise ValueError(f"rank {rank} is not a multiple of slot_dim {slot_dim}")
        if not 0 < temperature < math.inf:
            raise ValueError(f"temperature {temperature} must be finite and above 0")
        self.slot_dim, self.scale = slot_dim, 1 / (temperature * math.sqrt(slot_dim))
        self.down = nn.Linear(width, 3 * rank, bias=False)
        self.up = nn.Linear(rank, width)

    def forward(self, x0_BW: Tensor, x_BW: Tensor) -> Tensor:
        """[B, W], [B, W] -> [B, W]."""
        slots_B3NS = self.down(x_BW).unflatten(1, (3, -1, self.slot_dim))
        query_BNS, key_BNS, value_BNS = slots_B3NS.unbind(dim=1)
        weights_BNN = (torch.bmm(query_BNS, key_BNS.transpose(1, 2)) * self.scale).softmax(dim=2)
        attended_BNS = torch.bmm(weights_BNN, value_BNS) + value_BNS
        return torch.addcmul(x_BW, x0_BW, self.up(attended_BNS.flatten(1)))


class CrossNetwork(nn.Module):
    """A stack of cross layers on one x_0; L of them reach degree L + 1."""

    def __init__(self, layers: Iterable[nn.Module]) -> None:
        super().__init__()
        self.layers = nn.ModuleList(layers)

    def forward(self, x0_BW: Tensor) -> Tensor:
        """[B, W] -> [B, W]."""
        x_BW = x0_BW
        for layer in self.layers:
            x_BW = layer(x0_BW, x_BW)
        return x_BW
