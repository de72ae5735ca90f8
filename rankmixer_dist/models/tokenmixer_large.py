"""The TokenMixer-Large backbone (arXiv 2602.06563): mixing and reverting, per-token SwiGLU, auxiliary stages."""

from collections.abc import Callable
from functools import partial

import torch
from torch import Tensor, nn

from rankmixer_dist.layers.norm import norm_layer
from rankmixer_dist.layers.per_token_ffn import PerTokenSwiGLU
from rankmixer_dist.layers.token_mixing import check_mixable, mix_tokens, revert_tokens
from rankmixer_dist.models.backbone import Backbone


class TokenMixerLargeBlock(nn.Module):
    """One block; both residuals join values that mean the same, the first in the mixed space, the second in X's:

        M  = Mix(X),        M' = M + pSwiGLU_mix(RMSNorm(M))
        R  = Revert(M'),    X' = X + pSwiGLU_rev(RMSNorm(R))

    `mix` and `revert` are the two exchanges between tokens, and may be replaced by ones that spread them over ranks;
    all else acts on each token alone.

    Args:
        num_tokens: T.
        token_dim: D, a multiple of H.
        num_heads: H, the number of mixed tokens; each is T * D / H wide.
        hidden_dim: F of both SwiGLUs.
        down_init: scale of the down projections' initialisation.
    """

    def __init__(self, *, num_tokens: int, token_dim: int, num_heads: int, hidden_dim: int, down_init: float) -> None:
        super().__init__()
        self.mix: Callable[[Tensor], Tensor] = partial(mix_tokens, num_heads=num_heads)
        self.revert: Callable[[Tensor], Tensor] = partial(revert_tokens, num_tokens=num_tokens)
        mixed_dim = num_tokens * token_dim // num_heads
        scales = (1.0, 1.0, down_init)
        self.mixed_norm = norm_layer("rms", mixed_dim)
        self.mixed_ffn = PerTokenSwiGLU(
            num_tokens=num_heads, token_dim=mixed_dim, hidden_dim=hidden_dim, init_scales=scales
        )
        self.reverted_norm = norm_layer("rms", token_dim)
        self.reverted_ffn = PerTokenSwiGLU(
            num_tokens=num_tokens, token_dim=token_dim, hidden_dim=hidden_dim, init_scales=scales
        )

    def forward(self, x_TBD: Tensor) -> Tensor:
        """[T, B, D] -> [T, B, D]."""
        mixed_HBE = self.mix(x_TBD)
        mixed_HBE = mixed_HBE + self.mixed_ffn(self.mixed_norm(mixed_HBE))
        return x_TBD + self.reverted_ffn(self.reverted_norm(self.revert(mixed_HBE)))


class TokenMixerLarge(Backbone):
    """L blocks with residuals over several of them, a final RMSNorm and the mean over tokens.

    Block l for l = n, 2n, ... adds the input of block l - n + 1 to its output once more, the last block excepted, and
    what it gives is a stage of its own: pooled like the output, it can feed auxiliary heads. The paper leaves open how
    a stage is normalised; here all share the final norm, so that no parameter is idle where no auxiliary loss is used.
    The paper's global token is one of the tokens: it belongs to the tokenizer.

    Args:
        num_tokens: T.
        token_dim: D.
        num_blocks: L.
        hidden_dim: F = nD of both SwiGLUs, at any H; by default D, which gives a block as many weights as
            RankMixer's with k = 3 (n is not published).
        num_heads: H, a divisor of D; by default T.
        inter_residual: n, 2 or 3 in the paper; 0 for neither residuals over blocks nor auxiliary stages.
        down_init: scale of the down projections' initialisation.

    Attributes:
        num_auxiliary: the number of stages before the last.

    Raises:
        ValueError: D is not a multiple of H, or a value out of its range.
    """

    def __init__(
        self,
        *,
        num_tokens: int,
        token_dim: int,
        num_blocks: int = 4,
        hidden_dim: int | None = None,
        num_heads: int | None = None,
        inter_residual: int = 2,
        down_init: float = 0.01,
    ) -> None:
        super().__init__()
        check_mixable(num_tokens=num_tokens, token_dim=token_dim, num_heads=num_heads)
        if num_blocks < 1:
            raise ValueError(f"num_blocks {num_blocks} must be at least 1")
        if inter_residual < 0:
            raise ValueError(f"inter_residual {inter_residual} must be a number of blocks, or 0 for none")
        if not 0 <= down_init <= 1:
            raise ValueError(f"down_init {down_init} must be in 0..1")
        self.num_blocks = num_blocks
        self.inter_residual = inter_residual
        self.num_auxiliary = (num_blocks - 1) // inter_residual if inter_residual else 0
        self.out_dim = token_dim
        self.blocks = nn.ModuleList(
            TokenMixerLargeBlock(
                num_tokens=num_tokens,
                token_dim=token_dim,
                num_heads=num_tokens if num_heads is None else num_heads,
                hidden_dim=token_dim if hidden_dim is None else hidden_dim,
                down_init=down_init,
            )
            for _ in range(num_blocks)
        )
        self.final_norm = norm_layer("rms", token_dim)

    def forward(self, x_BTD: Tensor) -> Tensor:
        """Tokens [B, T, D] -> pooled [B, D], the last stage."""
        return self._pool(self._stages(x_BTD)[-1])

    def stages(self, x_BTD: Tensor) -> tuple[Tensor, ...]:
        """Tokens [B, T, D] -> pooled [B, D] of the `num_auxiliary` intermediate stages and of the last, in order."""
        return tuple(self._pool(x_TBD) for x_TBD in self._stages(x_BTD))

    def _stages(self, x_BTD: Tensor) -> list[Tensor]:
        x_TBD = start_TBD = x_BTD.transpose(0, 1)
        found = []
        for number, block in enumerate(self.blocks, start=1):
            x_TBD = block(x_TBD)
            if self.inter_residual and number % self.inter_residual == 0 and number < self.num_blocks:
                x_TBD = start_TBD = x_TBD + start_TBD
                found.append(x_TBD)
        return [*found, x_TBD]

    def _pool(self, x_TBD: Tensor) -> Tensor:
        return self.final_norm(x_TBD).mean(dim=0, dtype=torch.promote_types(x_TBD.dtype, torch.float32))
