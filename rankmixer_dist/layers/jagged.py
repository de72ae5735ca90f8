"""Rows of different lengths side by side: from a row to its events, and sums over a row's events.

Offsets are integers [B + 1]: row b has the events offsets[b] to offsets[b + 1] of N. Nothing here asks the device for
a value: N is a tensor's size.
"""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor


def row_of_event(offsets: Tensor, num_events: int) -> Tensor:
    """[B + 1] -> [N]: the row of each event."""
    rows_B = torch.arange(len(offsets) - 1, device=offsets.device, dtype=offsets.dtype)
    return torch.repeat_interleave(rows_B, offsets.diff(), output_size=num_events)


def to_events(x_BD: Tensor, row_N: Tensor, offsets: Tensor) -> Tensor:
    """[B, D] -> [N, D]: each event gets its row's vector; the gradient of a row is the sum over its events'."""
    return _ToEvents.apply(x_BD, row_N, offsets)


def sum_events(x_ND: Tensor, row_N: Tensor, offsets: Tensor) -> Tensor:
    """[N, D] -> [B, D]: the sum over each row's events, zeros for none."""
    return _SumEvents.apply(x_ND, row_N, offsets)


def weighted_sum(weight_N: Tensor, x_ND: Tensor, row_N: Tensor, offsets: Tensor) -> Tensor:
    """[N], [N, D] -> [B, D]: the weighted sum over each row's events, zeros for none."""
    return _WeightedSum.apply(weight_N, x_ND, row_N, offsets)


def softmax_events(x_N: Tensor, row_N: Tensor, offsets: Tensor) -> Tensor:
    """[N] -> [N]: softmax over each row's events."""
    most_B = torch.segment_reduce(x_N.detach(), "max", offsets=offsets, unsafe=True, initial=-torch.inf)
    power_N1 = (x_N - most_B.index_select(0, row_N)).exp().unsqueeze(1)
    total_B1 = sum_events(power_N1, row_N, offsets)
    return (power_N1 / to_events(total_B1, row_N, offsets)).squeeze(1)


def _sum(x_ND: Tensor, offsets: Tensor, weight_N: Tensor | None = None) -> Tensor:
    # A bag is summed by one kernel that writes no product; torch's segment_reduce goes value by value.
    every_N = torch.arange(len(x_ND), device=x_ND.device, dtype=offsets.dtype)
    return F.embedding_bag(
        every_N, x_ND.contiguous(), offsets, mode="sum", include_last_offset=True, per_sample_weights=weight_N
    )


class _ToEvents(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x_BD: Tensor, row_N: Tensor, offsets: Tensor) -> Tensor:
        ctx.save_for_backward(row_N, offsets)
        return x_BD.index_select(0, row_N)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None, None]:
        row_N, offsets = ctx.saved_tensors
        return sum_events(gradients[0], row_N, offsets), None, None


class _SumEvents(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x_ND: Tensor, row_N: Tensor, offsets: Tensor) -> Tensor:
        ctx.save_for_backward(row_N, offsets)
        return _sum(x_ND, offsets)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None, None]:
        row_N, offsets = ctx.saved_tensors
        return to_events(gradients[0], row_N, offsets), None, None


class _WeightedSum(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, weight_N: Tensor, x_ND: Tensor, row_N: Tensor, offsets: Tensor) -> Tensor:
        ctx.save_for_backward(weight_N, x_ND, row_N, offsets)
        return _sum(x_ND, offsets, weight_N)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, Tensor, None, None]:
        weight_N, x_ND, row_N, offsets = ctx.saved_tensors
        gradient_ND = to_events(gradients[0], row_N, offsets)
        return (gradient_ND * x_ND).sum(1), gradient_ND * weight_N.unsqueeze(1), None, None
