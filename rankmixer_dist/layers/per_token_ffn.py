"""Feed-forward networks of tokens; in all but one every token position has its own weights."""

import torch.nn.functional as F
from torch import Tensor, nn

from rankmixer_dist.layers.stacked_linear import StackedLinear


class PerTokenFFN(nn.Module):
    """Eq. 6-9: v_t = W_t2 GELU(W_t1 s_t + b_t1) + b_t2, all tokens in one batched GEMM per layer.

    GELU is the exact (erf) form. Token-major in and out, which keeps each token's rows contiguous: on a transposed
    view of [B, T, D], as on a copy of it, training is level at 256 rows and a tenth slower at 1024 (bf16, CPU).

    Args:
        num_tokens: T.
        token_dim: D.
        hidden_dim: F = kD, the hidden width.

    Raises:
        ValueError: a size below 1.
    """

    def __init__(self, *, num_tokens: int, token_dim: int, hidden_dim: int) -> None:
        super().__init__()
        self.up = StackedLinear(count=num_tokens, in_dim=token_dim, out_dim=hidden_dim)
        self.down = StackedLinear(count=num_tokens, in_dim=hidden_dim, out_dim=token_dim)

    def forward(self, x_TBD: Tensor) -> Tensor:
        """[T, B, D] -> [T, B, D]."""
        return self.down(F.gelu(self.up(x_TBD)))


class SharedFFN(nn.Module):
    """The FFN of eq. 6-9 with one set of weights for all tokens: the "shared FFN" of RankMixer's Table 2.

    Args:
        token_dim: D.
        hidden_dim: F.

    Raises:
        ValueError: a size below 1.
    """

    def __init__(self, *, token_dim: int, hidden_dim: int) -> None:
        super().__init__()
        if min(token_dim, hidden_dim) < 1:
            raise ValueError(f"token_dim {token_dim} and hidden_dim {hidden_dim} must be at least 1")
        self.up = nn.Linear(token_dim, hidden_dim)
        self.down = nn.Linear(hidden_dim, token_dim)

    def forward(self, x_TBD: Tensor) -> Tensor:
        """[T, B, D] -> [T, B, D]."""
        return self.down(F.gelu(self.up(x_TBD)))


class PerTokenSwiGLU(nn.Module):
    """W_t,down (Swish(W_t,gate x_t) * W_t,up x_t), per token and without biases (arXiv 2602.06563).

    Swish is x sigmoid(x). The paper scales the initialisation of [gate, up, down] by [1, 1, 0.01] and finds that the
    small one has to be the last: the layer then starts near zero, and a residual around it near the identity. Its base
    is Xavier; ours is that of `nn.Linear`, per slice, as in all other layers. Three batched GEMMs, token-major.

    Args:
        num_tokens: T.
        token_dim: D.
        hidden_dim: F = nD, the hidden width.
        init_scales: of gate, up and down.

    Raises:
        ValueError: a size below 1, or a negative scale.
    """

    def __init__(
        self,
        *,
        num_tokens: int,
        token_dim: int,
        hidden_dim: int,
        init_scales: tuple[float, float, float] = (1.0, 1.0, 0.01),
    ) -> None:
        super().__init__()

        def linear(in_dim: int, out_dim: int, scale: float) -> StackedLinear:
            return StackedLinear(count=num_tokens, in_dim=in_dim, out_dim=out_dim, bias=False, init_scale=scale)

        gate_scale, up_scale, down_scale = init_scales
        self.gate = linear(token_dim, hidden_dim, gate_scale)
        self.up = linear(token_dim, hidden_dim, up_scale)
        self.down = linear(hidden_dim, token_dim, down_scale)

    def forward(self, x_TBD: Tensor) -> Tensor:
        """[T, B, D] -> [T, B, D]."""
        return self.down(F.silu(self.gate(x_TBD)) * self.up(x_TBD))
