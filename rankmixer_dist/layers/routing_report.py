"""What a mixture of experts has to know of a batch's rows, and what it reports of them."""

from dataclasses import dataclass, fields
from typing import Self

import torch
from torch import Tensor

from rankmixer_dist.layers.precision import widen


@dataclass(frozen=True)
class RoutedRows:
    """A batch's rows, as a mixture of experts sees them in training.

    Attributes:
        real_B: [B] bool; others are padding and count nowhere. All real rows count alike, since an expert costs the
            same whatever a row weighs in the loss.
        served_B: [B] bool; rows that take the path which inference takes, where a mixture has two.
    """

    real_B: Tensor
    served_B: Tensor

    @classmethod
    def all_real(cls, served_B: Tensor) -> Self:
        """Without padding."""
        return cls(torch.ones_like(served_B), served_B)


@dataclass(frozen=True)
class RoutingReport:
    """One layer's routing of one batch: sums over its real rows, so that those of several ranks add up.

    Attributes:
        pressed_TR: [T, R], fp32 or wider, with gradient: what the penalty presses on, gates or shares of experts.
        closed: scalar with gradient, how far all closed gates are from opening; 0 where gates are not opened.
        distance: scalar with gradient, what distillation is to make small; 0 where nothing is distilled.
        used_TE: [T, E], rows that use an expert; detached.
        gates_TE: [T, E], gates that inference would use; detached.
        rows: scalar, the real rows.
    """

    pressed_TR: Tensor
    closed: Tensor
    distance: Tensor
    used_TE: Tensor
    gates_TE: Tensor
    rows: Tensor

    def __add__(self, other: Self) -> Self:
        """Of both batches."""
        return type(self)(*(getattr(self, f.name) + getattr(other, f.name) for f in fields(self)))

    @property
    def active_T(self) -> Tensor:
        """[T], share of each token's gates that are open; 0 where there are no rows."""
        return self.used_TE.mean(dim=1) / self.rows.clamp(min=1)


def real_rows(rows: RoutedRows | None, gates_TBE: Tensor) -> Tensor:
    """[B] bool, the rows to count; all of them if nothing is known of them."""
    if rows is None:
        return torch.ones(gates_TBE.shape[1], dtype=torch.bool, device=gates_TBE.device)
    return rows.real_B


def sum_over_rows(values_TBE: Tensor, real_B: Tensor) -> Tensor:
    """[T, E], the sum over real rows in fp32 or wider."""
    # Replaced rather than multiplied by 0, since a padding row may hold NaN.
    return torch.where(real_B.unsqueeze(1), widen(values_TBE), 0.0).sum(dim=1)


def report_on(
    gates_TBE: Tensor,
    real_B: Tensor,
    *,
    pressed_TR: Tensor,
    closed: Tensor | None = None,
    distance: Tensor | None = None,
) -> RoutingReport:
    """The report of one batch; `gates_TBE` are those that inference would use."""
    gates_TBE = gates_TBE.detach()
    return RoutingReport(
        pressed_TR=pressed_TR,
        closed=pressed_TR.new_zeros(()) if closed is None else closed,
        distance=pressed_TR.new_zeros(()) if distance is None else distance,
        used_TE=sum_over_rows(gates_TBE > 0, real_B),
        gates_TE=sum_over_rows(gates_TBE, real_B),
        rows=real_B.sum(),
    )
