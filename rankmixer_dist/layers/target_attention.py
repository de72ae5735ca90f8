"""Pooling of behaviour sequences into one vector a row."""

from collections.abc import Sequence
from itertools import pairwise

import torch
from torch import Tensor, nn

from rankmixer_dist.layers.jagged import row_of_event, softmax_events, sum_events, to_events, weighted_sum


class TargetAttention(nn.Module):
    """DIN pooling (arXiv 1706.06978, eq. 3): v = sum_l a(q, k_l) k_l, with a the activation unit.

    a = MLP([q, k, q - k, q * k]) -> 1. The paper feeds the unit an outer product; difference and element-wise product
    are the form in common use. Its Dice activation needs batch statistics, which differ between one rank and many;
    SiLU is Dice with alpha = 0 and fixed statistics. Like the paper, weights are not normalised unless `softmax`.

    The unit runs on the events that are there. Its first layer is linear in q, k and q * k: W_q q + W_d q + b is made
    once a row, each event adds (W_k - W_d) k + W_p (q * k), and [N, 4D] is never formed.

    Args:
        dim: D, width of query and keys.
        hidden_dims: hidden widths of the activation unit, at least one.
        softmax: normalise the weights over each row's valid keys.

    Raises:
        ValueError: no hidden layer, or a size below 1.
    """

    def __init__(self, *, dim: int, hidden_dims: Sequence[int], softmax: bool = False) -> None:
        super().__init__()
        if not hidden_dims or min(dim, *hidden_dims) < 1:
            raise ValueError(
                f"dim {dim} and hidden_dims {list(hidden_dims)} must be at least 1, one hidden layer or more"
            )
        self.softmax = softmax
        self.first = nn.Linear(4 * dim, hidden_dims[0])
        self.activation = nn.SiLU()
        self.hidden = nn.ModuleList(nn.Linear(i, o) for i, o in pairwise(hidden_dims))
        self.score = nn.Linear(hidden_dims[-1], 1)

    def forward(self, query_BD: Tensor, keys_ND: Tensor, offsets: Tensor) -> Tensor:
        """Query [B, D], keys of all rows [N, D], where each row's begin [B + 1] -> [B, D]; rows without give zeros."""
        row_N = row_of_event(offsets, len(keys_ND))
        weights_N = self._scores(query_BD, keys_ND, row_N, offsets)
        if self.softmax:
            weights_N = softmax_events(weights_N, row_N, offsets)
        return weighted_sum(weights_N, keys_ND, row_N, offsets)

    def _scores(self, query_BD: Tensor, keys_ND: Tensor, row_N: Tensor, offsets: Tensor) -> Tensor:
        w_query, w_key, w_difference, w_product = self.first.weight.t().chunk(4, dim=0)  # each [D, F]
        offset_BF = torch.addmm(self.first.bias, query_BD, w_query + w_difference)
        told_NX = to_events(torch.cat([query_BD, offset_BF], dim=1), row_N, offsets)
        query_ND, offset_NF = told_NX.split([query_BD.shape[1], offset_BF.shape[1]], dim=1)
        x_NF = torch.addmm(offset_NF, keys_ND, w_key - w_difference)
        x_NF = self.activation(torch.addmm(x_NF, query_ND * keys_ND, w_product))
        for layer in self.hidden:
            x_NF = self.activation(layer(x_NF))
        return self.score(x_NF).squeeze(1)


class MeanPooling(nn.Module):
    """v = mean of a row's keys; called like `TargetAttention`, and ignores the query."""

    def forward(self, query_BD: Tensor | None, keys_ND: Tensor, offsets: Tensor) -> Tensor:
        """Keys of all rows [N, D], where each row's begin [B + 1] -> [B, D]; rows without give zeros."""
        total_BD = sum_events(keys_ND, row_of_event(offsets, len(keys_ND)), offsets)
        return total_BD / offsets.diff().clamp(min=1).to(keys_ND.dtype).unsqueeze(1)
