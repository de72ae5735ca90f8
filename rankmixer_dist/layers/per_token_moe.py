"""What every mixture of per-token experts is: a drop-in for the per-token FFN that reports its routing."""

from abc import ABC, abstractmethod
from typing import Any

from torch import Tensor, nn

from rankmixer_dist.layers.experts import PerTokenExperts
from rankmixer_dist.layers.routing_report import RoutedRows, RoutingReport


class PerTokenMoE(nn.Module, ABC):
    """Each token's own experts and routing; all parameters have the token in front.

    Attributes:
        experts: the experts.
        active_ratio: the share of the experts that `experts.sparse` computes, or is to learn to compute.
        sparse_training: whether training, too, goes through `experts.sparse`.
        report: of the last forward. It holds the graph of its penalties; copies and pickles leave it out.
    """

    def __init__(self, experts: PerTokenExperts, *, active_ratio: float = 1.0, sparse_training: bool = False) -> None:
        super().__init__()
        self.experts, self.active_ratio, self.sparse_training = experts, active_ratio, sparse_training
        self.report: RoutingReport | None = None

    @abstractmethod
    def forward(self, x_TBD: Tensor, rows: RoutedRows | None = None) -> Tensor:
        """[T, B, D] -> [T, B, D]; without `rows`, all count and which are served as in inference is drawn."""

    @abstractmethod
    def penalty(self, used_TE: Tensor, rows: Tensor) -> Tensor:
        """The reported batch's share of the penalty of a global batch, without its coefficient: a scalar with gradient.

        Summed over the parts of the global batch, it is a mean over all rows. An empty batch has none.

        Args:
            used_TE: [T, E], how many rows of the global batch use each of these tokens' experts.
            rows: scalar, real rows of the global batch.
        """

    def __getstate__(self) -> dict[str, Any]:
        # The report's graph can be neither copied nor pickled.
        return {**self.__dict__, "report": None}
