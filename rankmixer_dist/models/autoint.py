"""The AutoInt backbone (arXiv 1810.11921): stacked self-attention between fields, weights shared by all of them."""

from torch import Tensor, nn

from rankmixer_dist.layers.precision import widen
from rankmixer_dist.layers.routing_report import RoutedRows
from rankmixer_dist.layers.token_attention import attend, head_width
from rankmixer_dist.models.backbone import Backbone, Pooled


class InteractingLayer(nn.Module):
    """Eq. 5-8: multi-head self-attention between fields, and a ReLU over its sum with a projection of the input.

        alpha_mk = softmax_k(<W_Query e_m, W_Key e_k>),    e~_m = sum_k alpha_mk W_Value e_k    (per head)
        e_m^Res = ReLU(concat over heads of e~_m + W_Res e_m)

    No biases, as in the paper. One GEMM makes all four projections, with columns ordered (head, q|k|v|residual, value).

    Args:
        in_dim: width of a field.
        num_heads: H.
        head_dim: d', width of a head.
        scaled: divide the scores by sqrt(d'), which the paper does not.
    """

    def __init__(self, *, in_dim: int, num_heads: int, head_dim: int, scaled: bool = False) -> None:
        super().__init__()
        self.num_heads, self.head_dim, self.scaled = num_heads, head_dim, scaled
        self.projections = nn.Linear(in_dim, 4 * num_heads * head_dim, bias=False)

    def forward(self, x_TBD: Tensor) -> Tensor:
        """[T, B, in] -> [T, B, H d']."""
        num_tokens, rows, _ = x_TBD.shape
        parts_TN4d = self.projections(x_TBD).view(num_tokens, rows * self.num_heads, 4, self.head_dim)
        query_NTd, key_NTd, value_NTd, residual_NTd = (part.transpose(0, 1) for part in parts_TN4d.unbind(dim=2))
        heads_NTd = attend(query_NTd, key_NTd, value_NTd, scaled=self.scaled)
        y_TNd = (heads_NTd + residual_NTd).relu().transpose(0, 1)
        return y_TNd.reshape(num_tokens, rows, self.num_heads * self.head_dim)


class AutoInt(Backbone):
    """L interacting layers, then all fields side by side (eq. 5-9; the logistic regression of eq. 9 is the head's).

    Tokens are the fields. The paper's layers are 3 with 2 heads of width 32 on fields of width 16; here heads are by
    default as wide as keeps D. Its scores are not scaled, which saturates the softmax of wide heads: see `scaled`.

    Args:
        num_tokens: T, the number of fields.
        token_dim: D.
        num_layers: L.
        num_heads: H; D must be a multiple of it unless `head_dim` is given.
        head_dim: d', width of a head; D / H by default.
        scaled: divide the scores by sqrt(d').

    Raises:
        ValueError: D is not a multiple of H and `head_dim` is not given, or a size below 1.

    Attributes:
        out_dim: T H d'.
    """

    def __init__(
        self,
        *,
        num_tokens: int,
        token_dim: int,
        num_layers: int = 3,
        num_heads: int = 2,
        head_dim: int | None = None,
        scaled: bool = False,
    ) -> None:
        super().__init__()
        if num_layers < 1:
            raise ValueError(f"num_layers {num_layers} must be at least 1")
        head_dim = head_width(num_tokens=num_tokens, token_dim=token_dim, num_heads=num_heads, head_dim=head_dim)
        self.num_layers, self.num_heads, self.head_dim = num_layers, num_heads, head_dim
        self.out_dim = num_tokens * num_heads * head_dim
        self.layers = nn.ModuleList(
            InteractingLayer(
                in_dim=num_heads * head_dim if layer else token_dim,
                num_heads=num_heads,
                head_dim=head_dim,
                scaled=scaled,
            )
            for layer in range(num_layers)
        )

    def forward(self, x_BTD: Tensor, rows: RoutedRows | None = None) -> Pooled:
        """Tokens [B, T, D] -> pooled [B, T H d'], fp32 or wider."""
        x_TBA = x_BTD.transpose(0, 1)
        for layer in self.layers:
            x_TBA = layer(x_TBA)
        return Pooled(widen(x_TBA.transpose(0, 1).flatten(1)))
