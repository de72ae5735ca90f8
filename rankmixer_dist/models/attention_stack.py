"""What HeteroAttention, Hiformer and HHFT share: a stack of attention blocks with per-token FFNs, then the mean."""

from collections.abc import Sequence
from typing import Literal

import torch
from torch import Tensor, nn

from rankmixer_dist.layers.attention_block import AttentionBlock
from rankmixer_dist.layers.per_token_ffn import PerTokenFFN
from rankmixer_dist.models.backbone import Backbone

Norm = Literal["post", "pre"]
"""post: LN(x + f(x)), the Transformer's. pre: x + f(LN(x)), which trains deep stacks more easily."""


class AttentionStack(Backbone):
    """One block around each attention, then the mean over tokens; with pre-norm, a final LayerNorm before the mean.

    Token-major inside, and pooled in fp32 or wider, for the reasons given at `RankMixer`.

    Args:
        num_tokens: T.
        token_dim: D.
        attentions: the attention of each block in turn, [T, B, D] -> [T, B, D].
        hidden_dim: F, the hidden width of the per-token FFNs; 4 D by default.
        norm: "post" or "pre".

    Raises:
        ValueError: unknown `norm`, or a size below 1.
    """

    def __init__(
        self,
        *,
        num_tokens: int,
        token_dim: int,
        attentions: Sequence[nn.Module],
        hidden_dim: int | None = None,
        norm: Norm = "post",
    ) -> None:
        super().__init__()
        if hidden_dim is not None and hidden_dim < 1:
            raise ValueError(f"hidden_dim {hidden_dim} must be at least 1")
        hidden_dim = 4 * token_dim if hidden_dim is None else hidden_dim
        self.out_dim = token_dim
        self.blocks = nn.ModuleList(
            AttentionBlock(
                token_dim=token_dim,
                attention=attention,
                ffn=PerTokenFFN(num_tokens=num_tokens, token_dim=token_dim, hidden_dim=hidden_dim),
                norm=norm,
            )
            for attention in attentions
        )
        self.final_norm = nn.LayerNorm(token_dim) if norm == "pre" else nn.Identity()

    def forward(self, x_BTD: Tensor) -> Tensor:
        """Tokens [B, T, D] -> pooled [B, D]."""
        x_TBD = x_BTD.transpose(0, 1)
        for block in self.blocks:
            x_TBD = block(x_TBD)
        return self.final_norm(x_TBD).mean(dim=0, dtype=torch.promote_types(x_TBD.dtype, torch.float32))
