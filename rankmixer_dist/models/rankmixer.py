"""The RankMixer backbone (arXiv 2507.15551): blocks of token mixing and per-token FFNs."""

from collections.abc import Callable
from typing import Literal

import torch
from torch import Tensor, nn

from rankmixer_dist.cost import Part, rankmixer_part
from rankmixer_dist.layers.per_token_ffn import PerTokenFFN
from rankmixer_dist.layers.token_mixing import check_mixable, mix_tokens
from rankmixer_dist.models.backbone import Backbone

Norm = Literal["post", "pre"]
"""post: LN(x + f(x)), the paper's. pre: x + f(LN(x)), which trains deep stacks more easily."""


class RankMixerBlock(nn.Module):
    """One block, eq. 1 with `norm="post"`:

        S^{n-1} = LN(TokenMixing(X^{n-1}) + X^{n-1}),    X^n = LN(FFN(S^{n-1}) + S^{n-1})

    and X + TokenMixing(LN(X)), then S + FFN(LN(S)), with `norm="pre"`. One LayerNorm over D serves all tokens.

    `mix` and `ffn` are the two places where a block can be spread over ranks: `mix` is any [T, B, D] -> [T, B, D]
    function, and all else acts on each token alone.

    Args:
        token_dim: D.
        ffn: [T, B, D] -> [T, B, D], each token with its own weights.
        norm: where the LayerNorms stand.

    Raises:
        ValueError: unknown `norm`.
    """

    def __init__(self, *, token_dim: int, ffn: nn.Module, norm: Norm = "post") -> None:
        super().__init__()
        if norm not in ("post", "pre"):
            raise ValueError(f"norm {norm!r} is unknown; use 'post' or 'pre'")
        self.norm = norm
        self.mix: Callable[[Tensor], Tensor] = mix_tokens
        self.mixing_norm = nn.LayerNorm(token_dim)
        self.ffn = ffn
        self.ffn_norm = nn.LayerNorm(token_dim)

    def forward(self, x_TBD: Tensor) -> Tensor:
        """[T, B, D] -> [T, B, D]."""
        if self.norm == "post":
            s_TBD = self.mixing_norm(x_TBD + self.mix(x_TBD))
            return self.ffn_norm(s_TBD + self.ffn(s_TBD))
        s_TBD = x_TBD + self.mix(self.mixing_norm(x_TBD))
        return s_TBD + self.ffn(self.ffn_norm(s_TBD))


class RankMixer(Backbone):
    """L blocks, then the mean over tokens; with pre-norm, a final LayerNorm before the mean.

    Token-major inside. The pooled vector is fp32 (or wider) even for bf16 parameters: it is the mean of T values and
    feeds fp32 heads, so rounding it would only lose what the blocks computed.

    Args:
        num_tokens: T.
        token_dim: D, a multiple of T.
        num_blocks: L.
        hidden_dim: F = kD, the hidden width of the per-token FFN.
        norm: "post" (the paper) or "pre".

    Raises:
        ValueError: D is not a multiple of T, unknown `norm`, or a size below 1.
    """

    def __init__(
        self, *, num_tokens: int, token_dim: int, num_blocks: int, hidden_dim: int, norm: Norm = "post"
    ) -> None:
        super().__init__()
        check_mixable(num_tokens=num_tokens, token_dim=token_dim)
        if num_blocks < 1:
            raise ValueError(f"num_blocks {num_blocks} must be at least 1")
        self.num_tokens, self.token_dim, self.hidden_dim = num_tokens, token_dim, hidden_dim
        self.out_dim = token_dim
        self.num_blocks, self.norm = num_blocks, norm
        self.blocks = nn.ModuleList(
            RankMixerBlock(
                token_dim=token_dim,
                ffn=PerTokenFFN(num_tokens=num_tokens, token_dim=token_dim, hidden_dim=hidden_dim),
                norm=norm,
            )
            for _ in range(num_blocks)
        )
        self.final_norm = nn.LayerNorm(token_dim) if norm == "pre" else nn.Identity()

    def forward(self, x_BTD: Tensor) -> Tensor:
        """Tokens [B, T, D] -> pooled [B, D]; free of copies at the door when x_BTD lies token-major in memory."""
        x_TBD = x_BTD.transpose(0, 1)
        for block in self.blocks:
            x_TBD = block(x_TBD)
        return self.final_norm(x_TBD).mean(dim=0, dtype=torch.promote_types(x_TBD.dtype, torch.float32))

    def cost(self) -> Part:
        """Parameters and FLOPs per row."""
        return rankmixer_part(
            num_tokens=self.num_tokens,
            token_dim=self.token_dim,
            num_blocks=self.num_blocks,
            hidden_dim=self.hidden_dim,
            norm=self.norm,
        )
