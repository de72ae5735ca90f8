"""What every backbone is: tokens in, one pooled vector a row out."""

from abc import ABC, abstractmethod
from typing import NamedTuple

from torch import Tensor, nn

from rankmixer_dist.layers.routing_report import RoutedRows, RoutingReport


class Pooled(NamedTuple):
    """What a backbone makes of its tokens; a tuple, since what hooks into torch's modules looks for tensors in tuples.

    Attributes:
        out_BD: [B, out_dim], fp32 or wider.
        stages: in training mode [B, out_dim] of each of the `num_auxiliary` intermediate stages, in order.
        routing: the reports of its mixtures of experts, in the order of `Backbone.modules`.
    """

    out_BD: Tensor
    stages: tuple[Tensor, ...] = ()
    routing: tuple[RoutingReport, ...] = ()


class Backbone(nn.Module, ABC):
    """The seam between tokenizer and heads; all backbones read the same tokens, so that they can be compared.

    Attributes:
        out_dim: width of the pooled vector.
        num_auxiliary: how many intermediate stages can feed heads of their own while training.
    """

    out_dim: int
    num_auxiliary: int = 0

    @abstractmethod
    def forward(self, x_BTD: Tensor, rows: RoutedRows | None = None) -> Pooled:
        """Pools each row's tokens.

        Args:
            x_BTD: tokens [B, T, D], any strides.
            rows: what a mixture of experts has to know of the rows; all others leave it alone.
        """
