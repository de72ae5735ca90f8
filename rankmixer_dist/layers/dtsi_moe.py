"""DTSI-MoE: per-token experts trained densely through two ReLU routers, and served sparsely through one of them."""

from functools import partial
from typing import Literal, get_args

import torch
import torch.nn.functional as F
from torch import Tensor

from rankmixer_dist.layers.experts import PerTokenExperts
from rankmixer_dist.layers.per_token_moe import PerTokenMoE
from rankmixer_dist.layers.relu_router import ReLURouter
from rankmixer_dist.layers.routing_report import RoutedRows, RoutingReport, real_rows, report_on, sum_over_rows

Fusion = Literal["stochastic_rows", "stochastic_steps", "mean", "straight_through"]
"""How the two routers share the training forward, which the paper does not say. With each, the task trains both.

On a small regression against a teacher of the same shape, at 1/8 active, the served path ends at 1.3 to 1.7 times the
error of the training path with the stochastic fusions, and at 5 to 8 times with the others.

stochastic_rows: a row takes all its gates from one router, the infer router with probability `served_share`. The path
that is served is trained as it is served, on that share of each batch.
stochastic_steps: the same with one draw for the whole batch.
mean: G = (G_train + G_infer) / 2. Without noise, but the path that is served is never computed in training, and the
penalty shrinks its gates against those that the experts learned with.
straight_through: G = G_train, and the gradient of G goes to G_infer too, through its own ReLU; the report's `distance`,
squared, of G_infer from G_train, is to keep the two near enough for that to make sense.
"""


class DTSIMoE(PerTokenMoE):
    """Eq. 10 and 11 with dense training and sparse inference (section 3.4), in the place of the per-token FFN.

    In training mode all experts are computed, with gates fused from the train and the infer router. In eval mode only
    the infer router exists, and experts with closed gates cost nothing. The penalty acts on the infer router alone.
    Both routers start equal, so that training starts with the path that will be served, and only the penalty and what
    the fusion draws drive them apart.

    The report is of the infer gates. Which rows are served as in inference is the caller's choice in `RoutedRows`, so
    that it can be the same for all layers and does not depend on the ranks that hold a row; without one,
    `stochastic_*` draw from torch's global generator.

    Args:
        num_tokens: T.
        token_dim: D.
        num_experts: E, experts of each token.
        hidden_dim: F, hidden width of each expert.
        fusion: how both routers take part in training; see `Fusion`.
        served_share: of the rows, or steps, that `stochastic_*` draw for the infer router, in (0, 1).
        open_share: of the gates at the start; see `ReLURouter`.
        active_ratio: the share of the experts that the penalty is to leave open, by which the served pass is counted.

    Raises:
        ValueError: a size below 1, an unknown fusion or an impossible share.
    """

    def __init__(
        self,
        *,
        num_tokens: int,
        token_dim: int,
        num_experts: int,
        hidden_dim: int,
        fusion: Fusion = "stochastic_rows",
        served_share: float = 0.75,
        open_share: float = 0.5,
        active_ratio: float = 1.0,
    ) -> None:
        if fusion not in get_args(Fusion):
            raise ValueError(f"fusion {fusion!r} is unknown; use one of {', '.join(get_args(Fusion))}")
        if not 0 < served_share < 1:
            raise ValueError(f"served_share {served_share} must lie between 0 and 1")
        super().__init__(
            PerTokenExperts(num_tokens=num_tokens, num_experts=num_experts, token_dim=token_dim, hidden_dim=hidden_dim),
            active_ratio=active_ratio,
        )
        self.fusion, self.served_share = fusion, served_share
        router = partial(
            ReLURouter, num_tokens=num_tokens, token_dim=token_dim, num_experts=num_experts, open_share=open_share
        )
        self.train_router, self.infer_router = router(), router()
        self.infer_router.load_state_dict(self.train_router.state_dict())

    def forward(self, x_TBD: Tensor, rows: RoutedRows | None = None) -> tuple[Tensor, RoutingReport]:
        """[T, B, D] -> [T, B, D]; `rows.served_B` take the infer router's gates with the fusions `stochastic_*`."""
        logits_TBE = self.infer_router.logits(x_TBD)
        infer_TBE = F.relu(logits_TBE)
        real_B = real_rows(rows, infer_TBE)
        pressed_TE = sum_over_rows(infer_TBE, real_B)
        if not self.training:
            report = report_on(infer_TBE, real_B, pressed_TR=pressed_TE)
            return self.experts.sparse(x_TBD, infer_TBE), report
        closed = sum_over_rows(F.relu(-logits_TBE), real_B).sum()
        train_TBE = self.train_router(x_TBD)
        distance = None
        if self.fusion == "straight_through":
            distance = sum_over_rows(torch.square(infer_TBE - train_TBE.detach()), real_B).sum()
        report = report_on(infer_TBE, real_B, pressed_TR=pressed_TE, closed=closed, distance=distance)
        return self.experts.dense(x_TBD, self._fuse(train_TBE, infer_TBE, rows)), report

    def penalty(self, report: RoutingReport, used_TE: Tensor, rows: Tensor) -> Tensor:
        """Eq. 11 without lambda: the sum of a row's infer gates, as a mean over rows."""
        return report.pressed_TR.sum() / rows.clamp(min=1)

    def _fuse(self, train_TBE: Tensor, infer_TBE: Tensor, rows: RoutedRows | None) -> Tensor:
        if self.fusion == "mean":
            return (train_TBE + infer_TBE) / 2
        if self.fusion == "straight_through":
            return train_TBE + (infer_TBE - infer_TBE.detach())
        if rows is not None:
            served_B = rows.served_B
        else:
            batch = train_TBE.shape[1]
            draws = torch.rand(batch if self.fusion == "stochastic_rows" else 1)
            served_B = (draws < self.served_share).expand(batch).to(train_TBE.device)
        return torch.where(served_B.unsqueeze(1), infer_TBE, train_TBE)
