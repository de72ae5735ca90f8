"""What every backbone is: tokens in, one pooled vector a row out."""

from abc import ABC, abstractmethod

from torch import Tensor, nn


class Backbone(nn.Module, ABC):
    """The seam between tokenizer and heads; all backbones read the same tokens, so that they can be compared.

    Attributes:
        out_dim: width of the pooled vector.
        num_auxiliary: how many intermediate stages can feed heads of their own while training.
    """

    out_dim: int
    num_auxiliary: int = 0

    @abstractmethod
    def forward(self, x_BTD: Tensor) -> Tensor:
        """Tokens [B, T, D], any strides -> pooled [B, out_dim], fp32 or wider."""

    def stages(self, x_BTD: Tensor) -> tuple[Tensor, ...]:
        """Tokens [B, T, D] -> pooled [B, out_dim] of the `num_auxiliary` intermediate stages and of the last."""
        return (self(x_BTD),)
