"""The RankMixer backbone (arXiv 2507.15551): token mixing and per-token FFNs or experts, and its ablations."""

from collections.abc import Callable, Sequence
from functools import partial
from typing import Literal, cast, get_args

from torch import Tensor, nn

from rankmixer_dist.layers.norm import NormKind, norm_layer
from rankmixer_dist.layers.per_token_ffn import PerTokenFFN, SharedFFN
from rankmixer_dist.layers.token_mixing import check_mixable, mix_tokens
from rankmixer_dist.layers.token_routing import AllShareFFN, ConcatMLP, TokenSelfAttention
from rankmixer_dist.models.mixture import Mixture
from rankmixer_dist.models.seams import Block, Course, Feed, Home, Mix, Spreadable, WholeCourse

Norm = Literal["post", "pre", "none"]
"""post: LN(x + f(x)), the paper's. pre: x + f(LN(x)), which trains deep stacks more easily. none: x + f(x)."""

Mixing = Literal["heads", "self_attention", "concat_mlp", "share", "none"]
"""How tokens reach the FFNs. heads: token mixing, eq. 3-5. none: without it, as in Table 2. The others are Table 3's:
self_attention in the place of mixing; concat_mlp, one MLP over all tokens, and share, FFNs that all read all tokens,
in the place of mixing and per-token FFN."""

Exchange = Callable[[Tensor], Tensor]


class RankMixerBlock(Block):
    """One block, eq. 1 with `norm="post"`:

        S^{n-1} = LN(TokenMixing(X^{n-1}) + X^{n-1}),    X^n = LN(FFN(S^{n-1}) + S^{n-1})

    and X + TokenMixing(LN(X)), then S + FFN(LN(S)), with `norm="pre"`. One norm over D serves all tokens.

    Each line is a sublayer with one seam, at TokenMixing and at FFN; all else acts on each token alone.

    Args:
        token_dim: D.
        ffn: [T, B, D] -> [T, B, D], each token with its own weights.
        norm: where the norms stand.
        norm_kind: what they are.
        skip: whether there are residuals.
        mix: the exchange between tokens; None leaves it out together with its norm and residual.
        mixed_dim: width of the tokens after `mix`, where that is not D.

    Raises:
        ValueError: unknown `norm` or `norm_kind`.
    """

    def __init__(
        self,
        *,
        token_dim: int,
        ffn: nn.Module,
        norm: Norm = "post",
        norm_kind: NormKind = "layer",
        skip: bool = True,
        mix: Exchange | None = mix_tokens,
        mixed_dim: int | None = None,
    ) -> None:
        super().__init__()
        mixed_dim = token_dim if mixed_dim is None else mixed_dim
        self.norm, self.skip = norm, skip
        self.mix: Exchange | None = mix
        self.mixing_norm = _norm(norm if mix is not None else "none", norm_kind, token_dim, mixed_dim)
        self.ffn = ffn
        self.ffn_norm = _norm(norm, norm_kind, mixed_dim, mixed_dim)

    def course(self, x_TBD: Tensor) -> Course:
        """Both sublayers."""
        return (yield from self.fed((yield from self.mixed(x_TBD))))

    def mixed(self, x_TBD: Tensor) -> Course:
        """The first sublayer, [T, B, D] -> [T, B, D]."""
        if self.mix is None:
            return x_TBD
        read_TBD = self.mixing_norm(x_TBD) if self.norm == "pre" else x_TBD
        y_TBD = yield Mix(self.mix, read_TBD, x_TBD if self.skip else None)
        return self.mixing_norm(y_TBD) if self.norm == "post" else y_TBD

    def fed(self, s_TBD: Tensor) -> Course:
        """The second sublayer, [T, B, D] -> [T, B, D]."""
        y_TBD = yield Feed(self.ffn, self.ffn_norm(s_TBD) if self.norm == "pre" else s_TBD)
        y_TBD = s_TBD + y_TBD if self.skip else y_TBD
        return self.ffn_norm(y_TBD) if self.norm == "post" else y_TBD


class RankMixer(Spreadable):
    """L blocks, then the mean over tokens; with pre-norm, a final norm before the mean. Token-major inside.

    The defaults are the paper's model; the options from `norm_kind` on are there for its ablations (Tables 2 and 3).

    Args:
        num_tokens: T.
        token_dim: D, a multiple of T with `mixing="heads"`.
        num_blocks: L.
        hidden_dim: F = kD, the hidden width of the per-token FFN.
        norm: "post" (the paper), "pre", or "none" (Table 2).
        norm_kind: "layer" (the paper) or "rms".
        skip: False leaves out the residuals (Table 2).
        shared_ffn: True gives all tokens one FFN (Table 2).
        mixing: how tokens reach the FFNs; see `Mixing`.
        num_heads: H of `mixing="heads"`, which residuals fix to T; without them the first block turns T tokens into H
            of width T * D / H. Attention heads of `mixing="self_attention"`. T by default.
        moe: the mixture that takes the place of each per-token FFN (section 3.4); `hidden_dim` is then each expert's.

    Raises:
        ValueError: D is not a multiple of the heads, an unknown name, options that exclude each other, or a size
            below 1.
    """

    def __init__(
        self,
        *,
        num_tokens: int,
        token_dim: int,
        num_blocks: int,
        hidden_dim: int,
        norm: Norm = "post",
        norm_kind: NormKind = "layer",
        skip: bool = True,
        shared_ffn: bool = False,
        mixing: Mixing = "heads",
        num_heads: int | None = None,
        moe: Mixture | None = None,
    ) -> None:
        super().__init__()
        if num_blocks < 1:
            raise ValueError(f"num_blocks {num_blocks} must be at least 1")
        if min(num_tokens, token_dim, hidden_dim) < 1:
            sizes = f"num_tokens {num_tokens}, token_dim {token_dim} and hidden_dim {hidden_dim}"
            raise ValueError(f"{sizes} must all be at least 1")
        _check_options(mixing, num_heads, num_tokens, skip, shared_ffn)
        if moe is not None and (shared_ffn or mixing in ("concat_mlp", "share")):
            raise ValueError("moe takes the place of per-token FFNs; leave shared_ffn, or mixing 'share' and such, out")
        self.num_tokens, self.mixing, self.num_heads = num_tokens, mixing, num_heads
        self.blocks = nn.ModuleList()
        tokens, dim = num_tokens, token_dim
        for number in range(num_blocks):
            if number == 1 and mixing == "heads" and dim % tokens:
                raise ValueError(
                    f"the second block splits {tokens} tokens of width {dim} into {tokens} heads, which does not work "
                    f"out; with num_heads {tokens}, num_tokens * token_dim must be a multiple of {tokens**2}"
                )
            mix, mixed_tokens = _exchange(mixing, tokens, dim, num_heads)
            mixed_dim = tokens * dim // mixed_tokens
            if moe is not None:
                ffn: nn.Module = moe.build(num_tokens=mixed_tokens, token_dim=mixed_dim, hidden_dim=hidden_dim)
            else:
                ffn = _ffn(mixing, mixed_tokens, mixed_dim, hidden_dim, shared_ffn)
            self.blocks.append(
                RankMixerBlock(
                    token_dim=dim, ffn=ffn, norm=norm, norm_kind=norm_kind, skip=skip, mix=mix, mixed_dim=mixed_dim
                )
            )
            tokens, dim = mixed_tokens, mixed_dim
        self.out_dim = dim
        self.final_norm = norm_layer(norm_kind, dim) if norm == "pre" else nn.Identity()

    def course(self, x_TBD: Tensor) -> WholeCourse:
        """Tokens [T, B, D] to the last norm; they are mixed once before they go home, which saves an exchange."""
        first, *others = (cast(RankMixerBlock, block) for block in self.blocks)
        x_TBD = yield Home((yield from first.mixed(x_TBD)))
        x_TBD = yield from first.fed(x_TBD)
        for block in others:
            x_TBD = yield from block.course(x_TBD)
        return (self.final_norm(x_TBD),)

    def fed_layers(self) -> Sequence[nn.Module]:
        """The per-token FFN, or its mixture, of each block."""
        return [cast(RankMixerBlock, block).ffn for block in self.blocks]

    def check_exchanges(self) -> None:
        """See `Spreadable`."""
        if self.mixing != "heads":
            raise ValueError(f"tokens can be spread with mixing 'heads', not with {self.mixing!r}")
        if self.num_heads not in (None, self.num_tokens):
            raise ValueError("tokens cannot be spread with a num_heads that is not the number of tokens")


def _norm(norm: Norm, kind: NormKind, dim: int, out_dim: int) -> nn.Module:
    """The norm of a sublayer that maps `dim` to `out_dim`."""
    if norm not in get_args(Norm):
        raise ValueError(f"norm {norm!r} is unknown; use 'post', 'pre' or 'none'")
    layer = norm_layer(kind, dim if norm == "pre" else out_dim)
    return nn.Identity() if norm == "none" else layer


def _check_options(mixing: Mixing, num_heads: int | None, num_tokens: int, skip: bool, shared_ffn: bool) -> None:
    if mixing not in get_args(Mixing):
        raise ValueError(f"mixing {mixing!r} is unknown; use one of {', '.join(get_args(Mixing))}")
    if mixing in ("concat_mlp", "share") and shared_ffn:
        raise ValueError(f"mixing {mixing!r} replaces the per-token FFN, so there is none to share; drop shared_ffn")
    if num_heads is not None and mixing not in ("heads", "self_attention"):
        raise ValueError(f"mixing {mixing!r} has no heads; leave num_heads out")
    if mixing == "heads" and skip and num_heads not in (None, num_tokens):
        raise ValueError(
            f"num_heads {num_heads} must be the number of tokens, {num_tokens}: the residual adds mixed token h to "
            "token h, so that there must be as many of them, as wide; leave num_heads out, or set skip to false"
        )


def _exchange(mixing: Mixing, tokens: int, dim: int, num_heads: int | None) -> tuple[Exchange | None, int]:
    """What mixes a block's tokens, if anything, and how many there are afterwards."""
    if mixing == "heads":
        check_mixable(num_tokens=tokens, token_dim=dim, num_heads=num_heads)
        if num_heads in (None, tokens):
            return mix_tokens, tokens
        return partial(mix_tokens, num_heads=num_heads), num_heads
    if mixing == "self_attention":
        return TokenSelfAttention(token_dim=dim, num_heads=tokens if num_heads is None else num_heads), tokens
    return None, tokens


def all_share_hidden_dim(*, num_tokens: int, hidden_dim: int) -> int:
    """Hidden width at which T FFNs that read all T tokens, T D -> hidden -> D, weigh as much as T of D -> F -> D.

    T (T + 1) D hidden = 2 T D F, rounded to at least 1: Table 3 has All-Share at no more parameters or FLOPs.
    """
    return max(1, round(2 * hidden_dim / (num_tokens + 1)))


def _ffn(mixing: Mixing, tokens: int, dim: int, hidden_dim: int, shared: bool) -> nn.Module:
    """What a block's tokens go through after the exchange, if there is one."""
    if mixing == "concat_mlp":
        return ConcatMLP(num_tokens=tokens, token_dim=dim, hidden_dim=hidden_dim)
    if mixing == "share":
        hidden_dim = all_share_hidden_dim(num_tokens=tokens, hidden_dim=hidden_dim)
        return AllShareFFN(num_tokens=tokens, token_dim=dim, hidden_dim=hidden_dim)
    if shared:
        return SharedFFN(token_dim=dim, hidden_dim=hidden_dim)
    return PerTokenFFN(num_tokens=tokens, token_dim=dim, hidden_dim=hidden_dim)
