"""What every mixture of per-token experts is: it takes the place of the per-token FFN, and reports its routing."""

from abc import ABC, abstractmethod

from torch import Tensor, nn

from rankmixer_dist.layers.experts import PerTokenExperts
from rankmixer_dist.layers.routing_report import RoutedRows, RoutingReport


class PerTokenMoE(nn.Module, ABC):
    """Each token's own experts and routing; all parameters have the token in front.

    Attributes:
        experts: the experts.
        active_ratio: the share of the experts that `experts.sparse` computes, or is to learn to compute.
        sparse_training: whether training, too, goes through `experts.sparse`.
    """

    def __init__(self, experts: PerTokenExperts, *, active_ratio: float = 1.0, sparse_training: bool = False) -> None:
        super().__init__()
        self.experts, self.active_ratio, self.sparse_training = experts, active_ratio, sparse_training

    @abstractmethod
    def forward(self, x_TBD: Tensor, rows: RoutedRows | None = None) -> tuple[Tensor, RoutingReport]:
        """[T, B, D] -> [T, B, D] and its report; without `rows`, all count and who is served as in inference is drawn.

        In training mode rows go the way that trains, in eval mode the way that serves.
        """

    @abstractmethod
    def penalty(self, report: RoutingReport, used_TE: Tensor, rows: Tensor) -> Tensor:
        """The reported batch's share of the penalty of a global batch, without its coefficient: a scalar with gradient.

        Summed over the parts of the global batch, it is a mean over all rows. An empty batch has none.

        Args:
            report: of the batch, with the graph of its penalty.
            used_TE: [T, E], how many rows of the global batch use each of these tokens' experts.
            rows: scalar, real rows of the global batch.
        """
