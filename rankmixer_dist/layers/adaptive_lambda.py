"""The coefficients of a sparsity penalty, steered so that the share of active experts meets a budget."""

import math
from collections.abc import Callable

import torch
from torch import Tensor, nn


class AdaptiveLambda(nn.Module):
    """lambda = clamp(l gain^e), with l <- clamp(l alpha^e) a step, where e tells how far active / target is above 1.

    lambda weighs the penalty that closes gates (RankMixer, eq. 11), which the paper calls adaptive without a rule.
    ReMoE's (arXiv 2412.14711) is l alone, with the sign for e. But the penalty sets the speed at which gates close, not
    how many are open, so that l, a sum of such errors, is late: it grows until the target is reached, and closes gates
    far beyond it before it has shrunk again. The gain answers at once, as the proportional part of a PI controller
    beside the integral one, and lets go in time.

    mu, which is ours, weighs how far closed gates are from opening: mu = clamp(m gain^-e), m <- clamp(m alpha^-e).
    Training closes gates by itself (without any penalty 0.41 of them stayed open on the synthetic log), and a lambda
    alone can neither hold a target above that nor open what it closed for good. While lambda is needed, m lies at
    `minimum`, and the other way round.

    e <- memory e + (1 - memory) (active / target - 1) / width, the latter cut to [-1, 1]: a batch is a small sample,
    whose noise the gain would hand on to lambda. It is rounded to tenths, too, so that a gate which lies so near to 0
    that rounding opens or closes it moves nothing.

    The state is a buffer, so that checkpoints carry it; it stays fp32 when the module is cast, because bf16 would round
    alpha. On several ranks, update with the active ratio of the global batch, or the ranks drift apart.

    Args:
        target: share of experts that is to be active, in (0, 1].
        initial: l at the start, with e = 0; m starts at `minimum`.
        alpha: largest factor of one update of l and m, above 1; the closer, the slower and the calmer.
        gain: largest factor of lambda on l and of mu on m, at least 1; 1 for the integral part alone.
        width: relative distance from the target from which on e is the largest; 0 for the sign alone.
        memory: share of e that a step keeps, in [0, 1).
        minimum: lowest coefficient, above 0, or it could not rise again.
        maximum: highest coefficient, which bounds how long a wrong excess lasts.

    Raises:
        ValueError: a value outside its range.
    """

    state: Tensor

    def __init__(
        self,
        *,
        target: float,
        initial: float = 1e-5,
        alpha: float = 1.05,
        gain: float = 100.0,
        width: float = 0.2,
        memory: float = 0.5,
        minimum: float = 1e-6,
        maximum: float = 10.0,
    ) -> None:
        super().__init__()
        if not 0 < target <= 1:
            raise ValueError(f"target {target} must be a share of the experts above 0 and at most 1, such as 0.125")
        if not 1 < alpha < math.inf:
            raise ValueError(f"alpha {alpha} must be above 1")
        if not 1 <= gain < math.inf:
            raise ValueError(f"gain {gain} must be at least 1")
        if not 0 <= width < math.inf:
            raise ValueError(f"width {width} must be at least 0")
        if not 0 <= memory < 1:
            raise ValueError(f"memory {memory} must be at least 0 and below 1")
        if not 0 < minimum <= initial <= maximum < math.inf:
            raise ValueError(f"lambda needs 0 < minimum {minimum} <= initial {initial} <= maximum {maximum}")
        self.target, self.alpha, self.gain = target, alpha, gain
        self.width, self.memory, self.minimum, self.maximum = width, memory, minimum, maximum
        # l, m and e
        self.register_buffer("state", torch.tensor([initial, minimum, 0.0], dtype=torch.float32))

    @property
    def coefficients(self) -> Tensor:
        """[2], lambda and mu: what closes and what opens."""
        slow, off = self.state[:2], self.state[2]
        return (slow * self.gain ** torch.stack([off, -off])).clamp(self.minimum, self.maximum)

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> "AdaptiveLambda":
        # Follow `fn` to another device, but never to another dtype.
        return super()._apply(lambda t: moved if (moved := fn(t)).dtype == t.dtype else t.to(moved.device), recurse)

    @torch.no_grad()
    def update(self, active_ratio: Tensor | float) -> None:
        """One step towards the target; `active_ratio`: share of gates above 0, NaN counts as on the target."""
        active = torch.as_tensor(active_ratio, dtype=torch.float32, device=self.state.device)
        now = active / self.target - 1
        now = (now / self.width).clamp(-1, 1) if self.width else torch.sign(now)
        now = now.nan_to_num(0.0).mul(10).round().div(10)
        off = self.memory * self.state[2] + (1 - self.memory) * now
        self.state[:2].mul_(self.alpha ** torch.stack([off, -off])).clamp_(self.minimum, self.maximum)
        self.state[2] = off

    def forward(self, penalty: Tensor, closed: Tensor) -> Tensor:
        """lambda * penalty + mu * closed, the term to add to the loss."""
        closing, opening = self.coefficients
        return closing * penalty + opening * closed
