"""DTSI-MoE: per-token experts trained densely through two ReLU routers, and served sparsely through one of them."""

from functools import partial
from typing import Any, Literal, get_args

import torch
from torch import Tensor, nn

from rankmixer_dist.layers.experts import PerTokenExperts
from rankmixer_dist.layers.relu_router import ReLURouter, distance, l1_penalty
from rankmixer_dist.layers.routing_report import RoutingReport, real_rows, report_on

Fusion = Literal["stochastic_rows", "stochastic_steps", "mean", "straight_through"]
"""How the two routers share the training forward, which the paper does not say. With each, the task trains both.

On a small regression against a teacher of the same shape, at 1/8 active, the served path ends at 1.3 to 1.7 times the
error of the training path with the stochastic fusions, and at 5 to 8 times with the others.

stochastic_rows: a row takes all its gates from one router, either with probability 1/2. The path that is served is
trained as it is served, on half of each batch.
stochastic_steps: the same with one draw for the whole batch.
mean: G = (G_train + G_infer) / 2. Without noise, but the path that is served is never computed in training, and the
penalty shrinks its gates against those that the experts learned with: without `reopen` they closed for good.
straight_through: G = G_train, and the gradient of G goes to G_infer too, through its own ReLU; the report's
`distillation`, the squared distance of G_infer from G_train, is to keep the two near enough for that to make sense.
"""


class DTSIMoE(nn.Module):
    """Eq. 10 and 11 with dense training and sparse inference (section 3.4): a drop-in for the per-token FFN.

    In training mode all experts are computed, with gates fused from the train and the infer router. In eval mode only
    the infer router exists, and experts with closed gates cost nothing. The penalty acts on the infer router alone.
    Both routers start equal, so that training starts with the path that will be served, and only the penalty and what
    the fusion draws drive them apart.

    Each forward leaves its `RoutingReport` of the infer gates in `report`; it holds the graph of its penalties, and
    copies and pickles of the layer leave it out.

    `stochastic_*` draw on the CPU, from `generator`, or from torch's global generator while that is None. Ranks draw
    independently if their generators are seeded differently, as by the run's seed plus the rank (ranks that share
    rows need the same), and a run repeats its draws if the generator's state is restored. A caller that wants one draw
    for all layers passes `infer_rows_B`. Where activations are recomputed, use one of the two: recomputation restores
    the global generator but not one's own.

    Args:
        num_tokens: T.
        token_dim: D.
        num_experts: E, experts of each token.
        hidden_dim: F, hidden width of each expert.
        fusion: how both routers take part in training; see `Fusion`.
        reopen: whether closed infer gates can learn to open; see `ReLURouter`.

    Raises:
        ValueError: a size below 1 or an unknown fusion.
    """

    def __init__(
        self,
        *,
        num_tokens: int,
        token_dim: int,
        num_experts: int,
        hidden_dim: int,
        fusion: Fusion = "stochastic_rows",
        reopen: bool = False,
    ) -> None:
        super().__init__()
        if fusion not in get_args(Fusion):
            raise ValueError(f"fusion {fusion!r} is unknown; use one of {', '.join(get_args(Fusion))}")
        self.fusion = fusion
        self.experts = PerTokenExperts(
            num_tokens=num_tokens, num_experts=num_experts, token_dim=token_dim, hidden_dim=hidden_dim
        )
        router = partial(ReLURouter, num_tokens=num_tokens, token_dim=token_dim, num_experts=num_experts)
        self.train_router, self.infer_router = router(), router(reopen=reopen)
        self.infer_router.load_state_dict(self.train_router.state_dict())
        self.generator: torch.Generator | None = None
        self.report: RoutingReport | None = None

    def forward(self, x_TBD: Tensor, row_weight_B: Tensor | None = None, infer_rows_B: Tensor | None = None) -> Tensor:
        """[T, B, D] -> [T, B, D].

        Args:
            x_TBD: the tokens.
            row_weight_B: [B], 0 for padding rows, which the report leaves out; all rows count by default.
            infer_rows_B: [B], bool: rows that take the infer router's gates in training, instead of a draw.

        Raises:
            ValueError: `row_weight_B` or `infer_rows_B` is not [B], or the fusion of a training forward draws no rows.
        """
        infer_TBE = self.infer_router(x_TBD)
        real_B = real_rows(row_weight_B, infer_TBE)
        penalty = l1_penalty(infer_TBE, real_B)
        if not self.training:
            self.report = report_on(infer_TBE, real_B, penalty=penalty)
            return self.experts.sparse(x_TBD, infer_TBE)
        train_TBE = self.train_router(x_TBD)
        distillation = distance(infer_TBE, train_TBE, real_B) if self.fusion == "straight_through" else None
        self.report = report_on(infer_TBE, real_B, penalty=penalty, distillation=distillation)
        return self.experts.dense(x_TBD, self._fuse(train_TBE, infer_TBE, infer_rows_B))

    def _fuse(self, train_TBE: Tensor, infer_TBE: Tensor, infer_rows_B: Tensor | None) -> Tensor:
        rows = train_TBE.shape[1]
        if self.fusion in ("stochastic_rows", "stochastic_steps"):
            if infer_rows_B is None:
                draws = torch.rand(rows if self.fusion == "stochastic_rows" else 1, generator=self.generator)
                infer_rows_B = (draws < 0.5).expand(rows)
            elif infer_rows_B.shape != (rows,):
                raise ValueError(f"infer_rows_B needs shape [{rows}], not {list(infer_rows_B.shape)}")
            return torch.where(infer_rows_B.to(train_TBE.device).unsqueeze(1), infer_TBE, train_TBE)
        if infer_rows_B is not None:
            raise ValueError(f"fusion {self.fusion!r} draws no rows; leave infer_rows_B out, or use 'stochastic_rows'")
        if self.fusion == "mean":
            return (train_TBE + infer_TBE) / 2
        return train_TBE + (infer_TBE - infer_TBE.detach())

    def __getstate__(self) -> dict[str, Any]:
        # The report's graph can be neither copied nor pickled.
        return {**self.__dict__, "report": None}
