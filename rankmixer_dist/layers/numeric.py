"""Standardisation of numeric features, with missing values kept visible."""

import math
from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn


class NumericNormalizer(nn.Module):
    """(z_i, m_i) for each numeric i: z = clip((x - mean) / std, -bound, bound), m = 1 where x is NaN, and z = 0 there.

    Computed in fp32 or wider: `mean` and `std` are buffers that stay fp32 when the module is cast to bf16, because a
    rounded mean shifts every value of a feature whose spread is small beside its mean.

    Args:
        mean: per numeric, of the training split.
        std: per numeric; 0 says constant in training, and such a feature is only centred.
        bound: clip, in standard deviations.

    Raises:
        ValueError: lists of different length, a value that is not finite, a std below 0, or bound <= 0.
    """

    mean: Tensor
    std: Tensor

    def __init__(self, *, mean: Sequence[float], std: Sequence[float], bound: float = 5.0) -> None:
        super().__init__()
        if len(mean) != len(std):
            raise ValueError(f"{len(mean)} means but {len(std)} standard deviations")
        for i, (m, s) in enumerate(zip(mean, std, strict=True)):
            if not (math.isfinite(m) and math.isfinite(s) and s >= 0):
                raise ValueError(f"numeric {i}: mean {m}, std {s}; both must be finite and std at least 0")
        if not bound > 0:
            raise ValueError(f"bound {bound} must be above 0")
        self.bound = bound
        self.register_buffer("mean", torch.tensor(mean, dtype=torch.float32))
        self.register_buffer("std", torch.tensor([s or 1.0 for s in std], dtype=torch.float32))

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> "NumericNormalizer":
        # Follow `fn` to another device, but never to another dtype.
        return super()._apply(lambda t: moved if (moved := fn(t)).dtype == t.dtype else t.to(moved.device), recurse)

    def forward(self, x_BN: Tensor) -> Tensor:
        """[B, N], NaN = missing -> [B, 2N]; numeric i occupies columns 2i (value) and 2i + 1 (missing)."""
        missing_BN = x_BN.isnan()
        z_BN = (torch.where(missing_BN, self.mean, x_BN) - self.mean) / self.std
        z_BN = z_BN.clamp(-self.bound, self.bound)
        return torch.stack([z_BN, missing_BN.to(z_BN.dtype)], dim=2).flatten(1)
