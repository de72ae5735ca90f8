"""DLRM-MLP, the base of RankMixer's Table 1: a plain MLP on the flattened tokens."""

from collections.abc import Sequence

from torch import Tensor

from rankmixer_dist.layers.mlp import MLP
from rankmixer_dist.layers.precision import widen
from rankmixer_dist.layers.routing_report import RoutedRows
from rankmixer_dist.layers.sizes import check_sizes
from rankmixer_dist.models.backbone import Backbone, Pooled


class DLRMMLP(Backbone):
    """h = MLP(flatten(X)), ReLU after every layer; the pooled vector is the last hidden layer.

    RankMixer's paper gives the sizes of its baseline (8.7 and 95 million parameters) but no shape.

    Args:
        num_tokens: T.
        token_dim: D.
        hidden_dims: widths of the layers, at least one.

    Raises:
        ValueError: no layer, or a size below 1.
    """

    def __init__(self, *, num_tokens: int, token_dim: int, hidden_dims: Sequence[int] = (512, 256)) -> None:
        super().__init__()
        check_sizes(num_tokens=num_tokens, token_dim=token_dim)
        if not hidden_dims:
            raise ValueError("hidden_dims is empty; an MLP needs the width of at least one layer")
        self.mlp = MLP(in_dim=num_tokens * token_dim, hidden_dims=hidden_dims)
        self.out_dim = self.mlp.out_dim

    def forward(self, x_BTD: Tensor, rows: RoutedRows | None = None) -> Pooled:
        """Tokens [B, T, D] -> pooled [B, last hidden width]."""
        return Pooled(widen(self.mlp(x_BTD.flatten(1))))
