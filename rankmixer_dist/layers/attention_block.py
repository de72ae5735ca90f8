"""The Transformer block around any attention between tokens: residuals, LayerNorms and per-token FFNs."""

from typing import Literal

from torch import Tensor, nn


class AttentionBlock(nn.Module):
    """One block, with `norm="post"`:

        S = LN(X + Attention(X)),    X' = LN(S + FFN(S))

    and S = X + Attention(LN(X)), X' = S + FFN(LN(S)) with `norm="pre"`. One LayerNorm over D serves all tokens.

    Args:
        token_dim: D.
        attention: [T, B, D] -> [T, B, D].
        ffn: [T, B, D] -> [T, B, D].
        norm: where the LayerNorms stand.

    Raises:
        ValueError: unknown `norm`.
    """

    def __init__(
        self, *, token_dim: int, attention: nn.Module, ffn: nn.Module, norm: Literal["post", "pre"] = "post"
    ) -> None:
        super().__init__()
        if norm not in ("post", "pre"):
            raise ValueError(f"norm {norm!r} is unknown; use 'post' or 'pre'")
        self.norm = norm
        self.attention = attention
        self.attention_norm = nn.LayerNorm(token_dim)
        self.ffn = ffn
        self.ffn_norm = nn.LayerNorm(token_dim)

    def forward(self, x_TBD: Tensor) -> Tensor:
        """[T, B, D] -> [T, B, D]."""
        if self.norm == "post":
            s_TBD = self.attention_norm(x_TBD + self.attention(x_TBD))
            return self.ffn_norm(s_TBD + self.ffn(s_TBD))
        s_TBD = x_TBD + self.attention(self.attention_norm(x_TBD))
        return s_TBD + self.ffn(self.ffn_norm(s_TBD))
