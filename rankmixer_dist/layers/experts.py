"""Per-token expert FFNs, evaluated all at once for training or only where a gate is open for inference."""

from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from rankmixer_dist.layers.sizes import check_sizes
from rankmixer_dist.layers.stacked_linear import StackedLinear


class PerTokenExperts(nn.Module):
    """Eq. 10: y_t = sum_j G_tj e_tj(s_t), where e_tj is an FFN of F hidden units with weights of its own.

    The up weights of a token's experts lie side by side, `up.weight` [T, D, E * F], the down weights below each other,
    `down.weight` [T * E, F, D]: with all experts on, a layer is the same two batched GEMMs as one FFN of E * F hidden
    units whose hidden units are scaled by the gates. (Laid out expert by expert, training costs a sixth more, for the
    copies between the two.) Every slice of an expert starts like an `nn.Linear` of its own. GELU is the exact form.

    `dense` and `sparse` give the same result and, if the gates come from a function that is flat where it is 0, the
    same gradients.

    Args:
        num_tokens: T.
        num_experts: E, experts of each token.
        token_dim: D.
        hidden_dim: F, hidden width of each expert.

    Raises:
        ValueError: a size below 1.
    """

    def __init__(self, *, num_tokens: int, num_experts: int, token_dim: int, hidden_dim: int) -> None:
        super().__init__()
        check_sizes(num_tokens=num_tokens, num_experts=num_experts, token_dim=token_dim, hidden_dim=hidden_dim)
        self.num_experts, self.token_dim, self.hidden_dim = num_experts, token_dim, hidden_dim
        self.up = StackedLinear(count=num_tokens, in_dim=token_dim, out_dim=num_experts * hidden_dim)
        self.down = StackedLinear(count=num_tokens * num_experts, in_dim=hidden_dim, out_dim=token_dim)

    @property
    def num_tokens(self) -> int:
        """T, which is smaller once a rank has kept its own tokens' share of the parameters."""
        return self.up.weight.shape[0]

    def dense(self, x_TBD: Tensor, gates_TBE: Tensor) -> Tensor:
        """All experts of all rows, [T, B, D] and [T, B, E] -> [T, B, D]; saves two [T, B, E F] for the backward."""
        hidden_TBEF = self.up(x_TBD).unflatten(2, (self.num_experts, self.hidden_dim))
        gated_TBX = _GatedGELU.apply(hidden_TBEF, gates_TBE).flatten(2)
        down_TXD = self.down.weight.view(self.num_tokens, -1, self.token_dim)
        return torch.baddbmm(self._gated_biases(gates_TBE), gated_TBX, down_TXD)

    def sparse(self, x_TBD: Tensor, gates_TBE: Tensor, *, grouped: bool | None = None) -> Tensor:
        """Only experts with a gate other than 0, [T, B, D] and [T, B, E] -> [T, B, D].

        No tensor here has more than one row for each open gate. Open gates are found sorted by expert, so that each
        expert's rows are contiguous after one gather.

        Args:
            x_TBD: the tokens.
            gates_TBE: the gates.
            grouped: True takes grouped GEMMs, one over all tokens for each expert number; False one GEMM for each
                expert that has rows. By default the former on GPUs where its kernel accepts the sizes (bf16, D and F
                multiples of 8), where launches would dominate, and the latter elsewhere, where it is faster.
        """
        if x_TBD.is_meta:  # gates have no values there, so that all of them count as open
            return self.dense(x_TBD, gates_TBE)
        if grouped is None:
            aligned = self.token_dim % 8 == 0 and self.hidden_dim % 8 == 0
            grouped = x_TBD.is_cuda and x_TBD.dtype == torch.bfloat16 and aligned
        return self._sparse_grouped(x_TBD, gates_TBE) if grouped else self._sparse_by_expert(x_TBD, gates_TBE)

    def _gated_biases(self, gates_TBE: Tensor) -> Tensor:
        """sum_j G_tj b_tj: [T, B, D]."""
        return torch.bmm(gates_TBE, self.down.bias.view(self.num_tokens, self.num_experts, -1))

    def _sparse_by_expert(self, x_TBD: Tensor, gates_TBE: Tensor) -> Tensor:
        gates_TEB = gates_TBE.transpose(1, 2)
        open_TEB = gates_TEB != 0
        counts = open_TEB.sum(dim=2).tolist()
        token_M, expert_M, row_M = open_TEB.nonzero(as_tuple=True)
        sizes = [sum(of_token) for of_token in counts]
        gates = gates_TEB[token_M, expert_M, row_M].unsqueeze(1).split(sizes)
        rows = row_M.split(sizes)
        up, up_bias = self.up.weight.unbind(), self.up.bias.unbind()
        down = self.down.weight.unbind()
        y_TBD = self._gated_biases(gates_TBE)
        keep_graph = torch.is_grad_enabled()
        sums = []
        for t, x_BD in enumerate(x_TBD.unbind()):
            tokens_MD = x_BD.index_select(0, rows[t])
            hidden_MF = _products(
                tokens_MD, up[t].split(self.hidden_dim, dim=1), up_bias[t].split(self.hidden_dim), counts[t]
            )
            gated_MF = F.gelu(hidden_MF) * gates[t]
            output_MD = _products(gated_MF, down[t * self.num_experts : (t + 1) * self.num_experts], None, counts[t])
            if keep_graph:
                sums.append(y_TBD[t].index_add(0, rows[t], output_MD))
            else:
                y_TBD[t].index_add_(0, rows[t], output_MD)
        return torch.stack(sums) if keep_graph else y_TBD

    def _sparse_grouped(self, x_TBD: Tensor, gates_TBE: Tensor) -> Tensor:
        num_tokens, rows, _ = x_TBD.shape
        x_XD = x_TBD.flatten(0, 1)
        y_XD = self._gated_biases(gates_TBE).flatten(0, 1)
        up = self.up.weight.split(self.hidden_dim, dim=2)
        up_bias = self.up.bias.split(self.hidden_dim, dim=1)
        down = self.down.weight.unflatten(0, (num_tokens, self.num_experts)).unbind(1)
        for e, gates_TB in enumerate(gates_TBE.unbind(2)):
            open_TB = gates_TB != 0
            token_M, row_M = open_TB.nonzero(as_tuple=True)
            if not len(row_M):
                continue
            ends_T = open_TB.sum(dim=1).cumsum(0, dtype=torch.int32)
            index_M = token_M * rows + row_M
            hidden_MF = F.grouped_mm(x_XD[index_M], up[e], offs=ends_T) + up_bias[e][token_M]
            gated_MF = F.gelu(hidden_MF) * gates_TB[token_M, row_M].unsqueeze(1)
            output_MD = F.grouped_mm(gated_MF, down[e], offs=ends_T)
            # In place only where no graph needs what was there before.
            add = y_XD.index_add if torch.is_grad_enabled() else y_XD.index_add_
            y_XD = add(0, index_M, output_MD)
        return y_XD.unflatten(0, (num_tokens, rows))


def _products(x_MI: Tensor, weights: Sequence[Tensor], biases: Sequence[Tensor] | None, counts: list[int]) -> Tensor:
    """Consecutive groups of rows, each times its own weight [I, O] plus its own bias [O]: [M, O]."""
    y_MO = x_MI.new_empty(len(x_MI), weights[0].shape[1])
    # Autograd does not write into buffers; without it, nothing has to be put together afterwards.
    keep_graph = torch.is_grad_enabled()
    groups = []
    for n, (x, y) in enumerate(zip(x_MI.split(counts), y_MO.split(counts), strict=True)):
        if counts[n]:
            out = None if keep_graph else y
            groups.append(
                torch.mm(x, weights[n], out=out) if biases is None else torch.addmm(biases[n], x, weights[n], out=out)
            )
    return torch.cat(groups) if keep_graph and groups else y_MO


class _GatedGELU(torch.autograd.Function):
    """GELU(h) * G, which computes GELU again in the backward pass instead of keeping it: [T, B, E, F] is the largest
    tensor of the layer, and the next GEMM keeps the product anyway."""

    @staticmethod
    def forward(ctx: Any, hidden_TBEF: Tensor, gates_TBE: Tensor) -> Tensor:
        ctx.save_for_backward(hidden_TBEF, gates_TBE)
        return F.gelu(hidden_TBEF).mul_(gates_TBE.unsqueeze(3))

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_TBEF: Tensor) -> tuple[Tensor, Tensor]:
        hidden_TBEF, gates_TBE = ctx.saved_tensors
        grad_gates_TBE = F.gelu(hidden_TBEF).mul_(grad_TBEF).sum(dim=3)
        return torch.ops.aten.gelu_backward(grad_TBEF * gates_TBE.unsqueeze(3), hidden_TBEF), grad_gates_TBE
