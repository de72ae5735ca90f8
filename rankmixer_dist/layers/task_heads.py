"""One output head a task on the pooled representation."""

import math
from collections.abc import Sequence
from itertools import pairwise

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from rankmixer_dist.layers.stacked_linear import StackedLinear


class TaskHeads(nn.Module):
    """logit_k = w_k . h_k + b_k, with h_k the pooled vector itself or the output of task k's own GELU layers.

    Runs in fp32 whatever the parameters' dtype: it is a negligible share of the work, and bf16 logits would tie
    scores that AUC has to tell apart.

    Args:
        in_dim: D, width of the pooled vector.
        num_tasks: K.
        hidden_dims: widths of each task's own hidden layers; none by default.
        base_rates: expected positive rate a task; the last bias starts at its log-odds. Default: like `nn.Linear`.

    Raises:
        ValueError: base rates not one a task, or not inside (0, 1); a size below 1.
    """

    def __init__(
        self,
        *,
        in_dim: int,
        num_tasks: int,
        hidden_dims: Sequence[int] = (),
        base_rates: Sequence[float] | None = None,
    ) -> None:
        super().__init__()
        dims = (in_dim, *hidden_dims, 1)
        self.num_tasks, self.hidden_dims = num_tasks, tuple(hidden_dims)
        layers = [StackedLinear(count=num_tasks, in_dim=i, out_dim=o) for i, o in pairwise(dims)]
        self.layers = nn.ModuleList(layers)
        if base_rates is not None:
            self._set_base_rates(layers[-1].bias, base_rates)

    def _set_base_rates(self, bias_K1: Tensor, base_rates: Sequence[float]) -> None:
        if len(base_rates) != self.num_tasks or not all(0 < rate < 1 for rate in base_rates):
            raise ValueError(
                f"base_rates needs {self.num_tasks} values between 0 and 1, not {list(base_rates)}; "
                "drop a task whose labels are all alike"
            )
        log_odds = [math.log(rate / (1 - rate)) for rate in base_rates]
        with torch.no_grad():
            bias_K1.copy_(torch.tensor(log_odds).unsqueeze(1))

    def forward(self, pooled_BD: Tensor) -> Tensor:
        """[B, D] -> logits [B, K] in fp32 (or wider)."""
        dtype = torch.promote_types(pooled_BD.dtype, torch.float32)
        x_KBD = pooled_BD.to(dtype).expand(self.num_tasks, -1, -1)
        for i, layer in enumerate(self.layers):
            if i:
                x_KBD = F.gelu(x_KBD)
            weight, bias = layer.get_parameter("weight").to(dtype), layer.get_parameter("bias").to(dtype)
            x_KBD = torch.baddbmm(bias.unsqueeze(1), x_KBD, weight)
        return x_KBD.squeeze(2).t()
