"""The coefficients of a sparsity penalty, steered so that the share of active experts meets a budget."""

import math
from collections.abc import Callable

import torch
from torch import Tensor, nn


class AdaptiveLambda(nn.Module):
    """lambda <- clamp(lambda * alpha^e), mu <- clamp(mu / alpha^e), e = (active / target - 1) / width cut to [-1, 1].

    e is rounded to tenths, so that a gate which lies so near to 0 that rounding opens or closes it moves neither.
    lambda weighs the penalty that closes gates (RankMixer, eq. 11), which the paper calls adaptive without a rule. Off
    the target by more than `width` this is ReMoE's (arXiv 2412.14711), which takes the sign alone; nearer, it slows
    down. Gates follow only after many steps, so that a large alpha overshoots: on small problems ReMoE's 1.2 left 1 %
    of the gates open for a target of 1/8, while 1.02 to 1.05 met it.

    mu, which is ours, weighs how far closed gates are from opening. Training closes gates by itself (without any
    penalty 0.41 of them stayed open on the synthetic log), and a lambda alone can neither hold a target above that nor
    open what it closed for good. While lambda is needed, mu lies at `minimum`, and the other way round.

    The state is a buffer, so that checkpoints carry it; it stays fp32 when the module is cast, because bf16 would round
    alpha. On several ranks, update with the active ratio of the global batch, or the ranks drift apart.

    Args:
        target: share of experts that is to be active, in (0, 1].
        initial: lambda at the start; mu starts at `minimum`.
        alpha: largest factor of one update, above 1; the closer, the slower and the calmer.
        width: relative distance from the target from which on updates are the largest; 0 for the sign alone.
        minimum: lowest coefficient, above 0, or it could not rise again.
        maximum: highest coefficient, which bounds how long a wrong excess lasts.

    Raises:
        ValueError: a value outside its range.
    """

    coefficients: Tensor

    def __init__(
        self,
        *,
        target: float,
        initial: float = 1e-5,
        alpha: float = 1.02,
        width: float = 0.2,
        minimum: float = 1e-6,
        maximum: float = 10.0,
    ) -> None:
        super().__init__()
        if not 0 < target <= 1:
            raise ValueError(f"target {target} must be a share of the experts above 0 and at most 1, such as 0.125")
        if not 1 < alpha < math.inf:
            raise ValueError(f"alpha {alpha} must be above 1")
        if not 0 <= width < math.inf:
            raise ValueError(f"width {width} must be at least 0")
        if not 0 < minimum <= initial <= maximum < math.inf:
            raise ValueError(f"lambda needs 0 < minimum {minimum} <= initial {initial} <= maximum {maximum}")
        self.target, self.alpha, self.width = target, alpha, width
        self.minimum, self.maximum = minimum, maximum
        self.register_buffer("coefficients", torch.tensor([initial, minimum], dtype=torch.float32))

    @property
    def closing(self) -> Tensor:
        """lambda."""
        return self.coefficients[0]

    @property
    def opening(self) -> Tensor:
        """mu."""
        return self.coefficients[1]

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> "AdaptiveLambda":
        # Follow `fn` to another device, but never to another dtype.
        return super()._apply(lambda t: moved if (moved := fn(t)).dtype == t.dtype else t.to(moved.device), recurse)

    @torch.no_grad()
    def update(self, active_ratio: Tensor | float) -> None:
        """One step towards the target; `active_ratio`: share of gates above 0. NaN leaves both as they are."""
        active = torch.as_tensor(active_ratio, dtype=torch.float32, device=self.coefficients.device)
        off = active / self.target - 1
        power = (off / self.width).clamp(-1, 1) if self.width else torch.sign(off)
        power = power.nan_to_num(0.0).mul(10).round().div(10)
        self.coefficients.mul_(self.alpha ** torch.stack([power, -power])).clamp_(self.minimum, self.maximum)

    def forward(self, penalty: Tensor, closed: Tensor) -> Tensor:
        """lambda * penalty + mu * closed, the term to add to the loss."""
        # A copy, since updates write in place, possibly before the backward pass.
        closing, opening = self.coefficients.clone()
        return closing * penalty + opening * closed
