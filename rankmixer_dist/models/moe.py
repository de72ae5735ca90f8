"""MoE, the multi-gate mixture of experts (MMoE, Ma et al., KDD 2018) on the flattened tokens."""

from collections.abc import Sequence
from itertools import pairwise

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from rankmixer_dist.layers.precision import widen
from rankmixer_dist.layers.routing_report import RoutedRows
from rankmixer_dist.layers.sizes import check_sizes
from rankmixer_dist.layers.stacked_linear import StackedLinear
from rankmixer_dist.models.backbone import Backbone, Pooled


class MMoE(Backbone):
    """h_k = sum_e softmax(W_k x)_e MLP_e(x) for every gate k, x = flatten(X); pooled = [h_1; ...; h_K].

    The paper gives each task its own gate and its own tower on that gate's h_k. Here the heads read one pooled vector,
    which is all h_k side by side: with `num_gates` the number of tasks, head k can find h_k and may look at the other
    gates' too. One gate, the default, is the paper's one-gate mixture (OMoE), which all tasks share. All experts are
    computed for every row. Experts are ReLU MLPs; gates have no bias.

    Args:
        num_tokens: T.
        token_dim: D.
        num_experts: E.
        num_gates: K.
        hidden_dims: widths of each expert's layers, at least one.

    Raises:
        ValueError: no layer, or a size below 1.
    """

    def __init__(
        self,
        *,
        num_tokens: int,
        token_dim: int,
        num_experts: int = 4,
        num_gates: int = 1,
        hidden_dims: Sequence[int] = (512, 256),
    ) -> None:
        super().__init__()
        check_sizes(num_tokens=num_tokens, token_dim=token_dim, num_experts=num_experts, num_gates=num_gates)
        if not hidden_dims or min(hidden_dims) < 1:
            raise ValueError(f"hidden_dims {list(hidden_dims)} needs at least one width, and none below 1")
        self.num_experts, self.num_gates = num_experts, num_gates
        width = num_tokens * token_dim
        self.experts = nn.ModuleList(
            StackedLinear(count=num_experts, in_dim=i, out_dim=o) for i, o in pairwise((width, *hidden_dims))
        )
        self.gates = nn.Linear(width, num_gates * num_experts, bias=False)
        self.out_dim = num_gates * hidden_dims[-1]

    def forward(self, x_BTD: Tensor, rows: RoutedRows | None = None) -> Pooled:
        """Tokens [B, T, D] -> pooled [B, K * last width], gate after gate."""
        x_BW = x_BTD.flatten(1)
        h_EBF = x_BW.expand(self.num_experts, -1, -1)
        for layer in self.experts:
            h_EBF = F.relu(layer(h_EBF))
        weights_BKE = self.gates(x_BW).unflatten(1, (self.num_gates, self.num_experts)).softmax(dim=2)
        return Pooled(widen(torch.bmm(weights_BKE, h_EBF.transpose(0, 1)).flatten(1)))
