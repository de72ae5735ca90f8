"""Softmax top-k mixtures of per-token experts: the baselines of RankMixer's Fig. 3, and TokenMixer-Large's."""

import torch
from torch import Tensor

from rankmixer_dist.layers.experts import PerTokenExperts
from rankmixer_dist.layers.per_token_moe import PerTokenMoE
from rankmixer_dist.layers.routing_report import RoutedRows, RoutingReport, real_rows, report_on, sum_over_rows
from rankmixer_dist.layers.stacked_linear import StackedLinear


class SoftmaxTopKMoE(PerTokenMoE):
    """y_t = alpha sum_{j in top-k} softmax(h_t(s_t))_j e_tj(s_t), per token, in the place of the per-token FFN.

    With a shared expert (arXiv 2602.06563, Sparse-Pertoken MoE) expert 0 serves every row with gate 1, and k - 1 of the
    other E - 1 come on top, so that neither E nor the active share k / E depends on the option. That paper gives alpha
    as about 1 / sparsity; the default is E / k. The softmax is over all routed experts, in fp32 or wider, and is not
    normalised again over the chosen ones.

    The penalty is the balance loss of the Switch Transformer (arXiv 2101.03961, eq. 4-6), summed over tokens, each of
    which routes for itself: R sum_j f_j P_j, with R routed experts, f_j the share of the global batch's choices that
    fell on expert j, P_j its mean probability. It is T when balanced; leave it out of the loss for the vanilla mixture.

    Args:
        num_tokens: T.
        token_dim: D.
        num_experts: E, experts of each token, a shared one included.
        hidden_dim: F, hidden width of each expert.
        top_k: k, active experts of each row and token, a shared one included.
        shared_expert: whether expert 0 is always on.
        alpha: factor on the routed experts; E / k by default.
        sparse_training: whether training, too, computes only the chosen experts; the result is the same.

    Raises:
        ValueError: a size below 1, k outside 1..E (2..E with a shared expert), or alpha not above 0.
    """

    def __init__(
        self,
        *,
        num_tokens: int,
        token_dim: int,
        num_experts: int,
        hidden_dim: int,
        top_k: int,
        shared_expert: bool = False,
        alpha: float | None = None,
        sparse_training: bool = False,
    ) -> None:
        lowest = 2 if shared_expert else 1
        if not lowest <= top_k <= num_experts:
            shared = ", one of them shared" if shared_expert else ""
            raise ValueError(f"top_k {top_k} must lie in {lowest}..{num_experts}: num_experts is {num_experts}{shared}")
        alpha = num_experts / top_k if alpha is None else alpha
        if not alpha > 0:
            raise ValueError(f"alpha {alpha} must be above 0")
        super().__init__(
            PerTokenExperts(num_tokens=num_tokens, num_experts=num_experts, token_dim=token_dim, hidden_dim=hidden_dim),
            active_ratio=top_k / num_experts,
            sparse_training=sparse_training,
        )
        self.shared, self.alpha = int(shared_expert), alpha
        self.routed, self.chosen = num_experts - self.shared, top_k - self.shared
        self.router = StackedLinear(count=num_tokens, in_dim=token_dim, out_dim=self.routed)

    def forward(self, x_TBD: Tensor, rows: RoutedRows | None = None) -> tuple[Tensor, RoutingReport]:
        """[T, B, D] -> [T, B, D]; training and inference are the same function."""
        logits_TBR = self.router(x_TBD)
        shares_TBR = logits_TBR.softmax(dim=2, dtype=torch.promote_types(logits_TBR.dtype, torch.float32))
        best_TBK, index_TBK = shares_TBR.topk(self.chosen, dim=2)
        routed_TBR = torch.zeros_like(shares_TBR).scatter(2, index_TBK, best_TBK)
        shared_TBS = torch.ones_like(shares_TBR[..., : self.shared])
        gates_TBE = torch.cat([shared_TBS, self.alpha * routed_TBR], dim=2).to(x_TBD.dtype)

        real_B = real_rows(rows, gates_TBE)
        report = report_on(gates_TBE, real_B, pressed_TR=sum_over_rows(shares_TBR, real_B))

        evaluate = self.experts.sparse if self.sparse_training or not self.training else self.experts.dense
        return evaluate(x_TBD, gates_TBE), report

    def penalty(self, report: RoutingReport, used_TE: Tensor, rows: Tensor) -> Tensor:
        """The balance loss."""
        rows = rows.clamp(min=1)
        choices_TR = used_TE[:, self.shared :] / (self.chosen * rows)
        return self.routed * (choices_TR * report.pressed_TR / rows).sum()
