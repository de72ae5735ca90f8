"""Norms of one token."""

import torch
from torch import Tensor


def rms_norm(x_D: Tensor, weight_D: Tensor, eps: float = 1e-5) -> Tensor:
    """x / sqrt(mean of squares + eps) * weight."""
    return x_D / torch.sqrt((x_D * x_D).sum() / len(x_D) + eps) * weight_D
