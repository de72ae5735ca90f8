"""RankMixer's backbone, and those of its ablations."""

from collections.abc import Callable
from typing import Literal

from rankmixer_dist.cost.part import Part, part_of

Layer = Callable[[int, int], Part]
"""Cost of a layer of T tokens of width D."""


def rankmixer_part(
    *,
    num_tokens: int,
    token_dim: int,
    num_blocks: int,
    hidden_dim: int,
    norm: Literal["post", "pre", "none"] = "post",
    norm_kind: Literal["layer", "rms"] = "layer",
    mixing: Literal["heads", "self_attention", "concat_mlp", "share", "none"] = "heads",
    num_heads: int | None = None,
    shared_ffn: bool = False,
    moe: Layer | None = None,
) -> Part:
    """Backbone: L (T (2DF + F + D) + 4D) parameters, 2D more for pre-norm's last norm, and 4 L T D F FLOPs.

    So by default. RMSNorm has D parameters for LayerNorm's 2D; self-attention adds 4D(D + 1) parameters and
    8 T D^2 + 4 T^2 D FLOPs a block; a shared FFN has a T-th of the parameters; the MLP over all tokens has
    2TDF + F + TD, and the FFNs that read all tokens those of `all_share_hidden_dim`. With H other than T heads,
    where only the first block reads T tokens, all others have H of width T D / H. With `moe`, it stands in the place
    of every per-token FFN.
    """
    gains = {"layer": 2, "rms": 1}[norm_kind]
    tokens, dim = num_tokens, token_dim
    parameters = products = 0
    mixtures: list[Part] = []
    for _ in range(num_blocks):
        mixed = (num_heads or tokens) if mixing == "heads" else tokens
        mixed_dim = tokens * dim // mixed
        if norm != "none":
            mixing_norm = {"post": mixed_dim, "pre": dim}[norm] if mixing in ("heads", "self_attention") else 0
            parameters += gains * (mixing_norm + mixed_dim)
        if mixing == "self_attention":
            parameters += 4 * dim * (dim + 1)
            products += 4 * tokens * dim**2 + 2 * tokens**2 * dim
        tokens, dim = mixed, mixed_dim
        if moe is not None:
            mixtures.append(moe(tokens, dim))
            continue
        weights, biases = _ffn(mixing, tokens, dim, hidden_dim)
        parameters += (weights + biases) // (tokens if shared_ffn else 1)
        products += weights
    if norm == "pre":
        parameters += gains * dim
    rest = part_of("backbone", parameters=parameters, products=products)
    return Part(
        rest.name,
        rest.parameters + sum(part.parameters for part in mixtures),
        rest.flops_per_row_forward + sum(part.flops_per_row_forward for part in mixtures),
        rest.flops_per_row_train + sum(part.flops_per_row_train for part in mixtures),
    )


def all_share_hidden_dim(*, num_tokens: int, hidden_dim: int) -> int:
    """Hidden width at which T FFNs that read all T tokens, T D -> hidden -> D, weigh as much as T of D -> F -> D.

    T (T + 1) D hidden = 2 T D F, rounded to at least 1: Table 3 has All-Share at no more parameters or FLOPs.
    """
    return max(1, round(2 * hidden_dim / (num_tokens + 1)))


def _ffn(mixing: str, tokens: int, dim: int, hidden_dim: int) -> tuple[int, int]:
    """Weights (each used once a row) and biases of what a block's tokens go through after the mixing."""
    if mixing == "concat_mlp":
        return 2 * tokens * dim * hidden_dim, hidden_dim + tokens * dim
    if mixing == "share":
        hidden_dim = all_share_hidden_dim(num_tokens=tokens, hidden_dim=hidden_dim)
        return tokens * (tokens + 1) * dim * hidden_dim, tokens * (hidden_dim + dim)
    return 2 * tokens * dim * hidden_dim, tokens * (hidden_dim + dim)
