"""What a mixture of experts reports of its last forward pass: penalties to train with, and how busy its experts are."""

from dataclasses import dataclass

import torch
from torch import Tensor

from rankmixer_dist.layers.precision import widen


@dataclass(frozen=True)
class RoutingReport:
    """One layer's routing of one batch. Rows of weight 0 (padding) count nowhere; all other rows count alike, since
    an expert costs the same whatever a row weighs in the loss.

    Attributes:
        penalty: scalar with gradient, a mean over rows, without its coefficient: eq. 11's sum of gates over tokens and
            experts (`DTSIMoE`), or the balance loss (`SoftmaxTopKMoE`). For ranks with unequal rows: times `rows`.
        distillation: scalar with gradient, a mean over rows, without its coefficient; 0 where nothing is distilled.
        active_T: [T], share of a token's gates above 0; detached.
        load_TE: [T, E], share of the rows that use an expert; detached.
        rows: scalar, the rows that counted.
    """

    penalty: Tensor
    distillation: Tensor
    active_T: Tensor
    load_TE: Tensor
    rows: Tensor

    @property
    def dead_experts(self) -> Tensor:
        """Scalar: experts that no row of this batch used."""
        return (self.load_TE == 0).sum()


def real_rows(row_weight_B: Tensor | None, gates_TBE: Tensor) -> Tensor:
    """[B], true for rows to count: those of weight above 0, by default all.

    Raises:
        ValueError: `row_weight_B` is not [B].
    """
    rows = gates_TBE.shape[1]
    if row_weight_B is None:
        return torch.ones(rows, dtype=torch.bool, device=gates_TBE.device)
    if row_weight_B.shape != (rows,):
        raise ValueError(f"row_weight_B needs one weight for each of {rows} rows, not shape {list(row_weight_B.shape)}")
    return row_weight_B > 0


def mean_over_rows(values_TBE: Tensor, real_B: Tensor) -> Tensor:
    """[T, E], the mean over real rows in fp32 or wider; 0 where there are none."""
    # Replaced rather than multiplied by 0, since a padding row may hold NaN.
    values_TBE = torch.where(real_B.unsqueeze(1), widen(values_TBE), 0.0)
    return values_TBE.sum(dim=1) / real_B.sum().clamp(min=1)


def report_on(
    gates_TBE: Tensor, real_B: Tensor, *, penalty: Tensor, distillation: Tensor | None = None
) -> RoutingReport:
    """The report of one batch; `gates_TBE` are those that inference would use."""
    load_TE = mean_over_rows(gates_TBE.detach() > 0, real_B)
    return RoutingReport(
        penalty=penalty,
        distillation=torch.zeros_like(penalty) if distillation is None else distillation,
        active_T=load_TE.mean(dim=1),
        load_TE=load_TE,
        rows=real_B.sum(),
    )
