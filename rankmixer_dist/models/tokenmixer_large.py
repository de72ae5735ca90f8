"""The TokenMixer-Large backbone (arXiv 2602.06563): mixing and reverting, per-token SwiGLU, auxiliary stages."""

from collections.abc import Callable, Sequence
from functools import partial
from typing import cast

from torch import Tensor, nn

from rankmixer_dist.layers.norm import norm_layer
from rankmixer_dist.layers.per_token_ffn import PerTokenSwiGLU
from rankmixer_dist.layers.token_mixing import check_mixable, mix_tokens, revert_tokens
from rankmixer_dist.models.seams import Block, Course, Feed, Home, Mix, Spreadable, WholeCourse


class TokenMixerLargeBlock(Block):
    """One block; both residuals join values that mean the same, the first in the mixed space, the second in X's:

        M  = Mix(X),        M' = M + pSwiGLU_mix(RMSNorm(M))
        R  = Revert(M'),    X' = X + pSwiGLU_rev(RMSNorm(R))

    Its seams are at Mix, Revert and both pSwiGLUs; all else acts on each token alone.

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

    def course(self, x_TBD: Tensor) -> Course:
        """[T, B, D] -> [T, B, D]."""
        mixed_HBE = yield Mix(self.mix, x_TBD)
        mixed_HBE = mixed_HBE + (yield Feed(self.mixed_ffn, self.mixed_norm(mixed_HBE)))
        reverted_TBD = yield Mix(self.revert, mixed_HBE)
        return x_TBD + (yield Feed(self.reverted_ffn, self.reverted_norm(reverted_TBD)))


class TokenMixerLarge(Spreadable):
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
        self.num_tokens, self.num_blocks = num_tokens, num_blocks
        self.num_heads = num_tokens if num_heads is None else num_heads
        self.inter_residual = inter_residual
        self.num_auxiliary = (num_blocks - 1) // inter_residual if inter_residual else 0
        self.out_dim = token_dim
        self.blocks = nn.ModuleList(
            TokenMixerLargeBlock(
                num_tokens=num_tokens,
                token_dim=token_dim,
                num_heads=self.num_heads,
                hidden_dim=token_dim if hidden_dim is None else hidden_dim,
                down_init=down_init,
            )
            for _ in range(num_blocks)
        )
        self.final_norm = norm_layer("rms", token_dim)

    def course(self, x_TBD: Tensor) -> WholeCourse:
        """Tokens [T, B, D] to the final norm, after those of the auxiliary stages in training."""
        x_TBD = start_TBD = yield Home(x_TBD)
        stages: list[Tensor] = []
        for number, block in enumerate(self._blocks(), start=1):
            x_TBD = yield from block.course(x_TBD)
            if self.inter_residual and number % self.inter_residual == 0 and number < self.num_blocks:
                x_TBD = start_TBD = x_TBD + start_TBD
                if self.training:
                    stages.append(x_TBD)
        return tuple(self.final_norm(end_TBD) for end_TBD in (*stages, x_TBD))

    def fed_layers(self) -> Sequence[nn.Module]:
        """Both SwiGLUs of each block."""
        return [layer for block in self._blocks() for layer in (block.mixed_ffn, block.reverted_ffn)]

    def check_exchanges(self) -> None:
        """See `Spreadable`; with as many heads as tokens, reverting is mixing."""
        if self.num_heads != self.num_tokens:
            raise ValueError("tokens cannot be spread with a num_heads that is not the number of tokens")

    def _blocks(self) -> list[TokenMixerLargeBlock]:
        return [cast(TokenMixerLargeBlock, block) for block in self.blocks]
