"""RankMixer and its ablations (arXiv 2507.15551), one row and one token at a time."""

import math

import torch
from torch import Tensor

from rankmixer_dist.layers.reference import gelu, layer_norm, mix_tokens, per_token_ffn
from rankmixer_dist.layers.reference.norm import rms_norm


def self_attention(x_TD: Tensor, weights: dict[str, Tensor], num_heads: int) -> Tensor:
    """softmax(q k / sqrt(d)) v of one row, head by head and query by query; `weights`: the layer's, [out, in]."""
    num_tokens, token_dim = x_TD.shape
    width = token_dim // num_heads
    q_TD, k_TD, v_TD = (
        torch.stack([weights["qkv.weight"][part] @ x_D + weights["qkv.bias"][part] for x_D in x_TD])
        for part in (slice(i * token_dim, (i + 1) * token_dim) for i in range(3))
    )
    tokens = []
    for t in range(num_tokens):
        heads = []
        for h in range(num_heads):
            own = slice(h * width, (h + 1) * width)
            scores = [torch.exp(q_TD[t, own] @ k_TD[s, own] / math.sqrt(width)) for s in range(num_tokens)]
            weighted = [score * v_TD[s, own] for s, score in enumerate(scores)]
            heads.append(torch.stack(weighted).sum(dim=0) / torch.stack(scores).sum())
        tokens.append(weights["out.weight"] @ torch.cat(heads) + weights["out.bias"])
    return torch.stack(tokens)


def concat_mlp(x_TD: Tensor, weights: dict[str, Tensor]) -> Tensor:
    """One MLP over the concatenation of all tokens of one row; `weights`: the layer's, [out, in]."""
    hidden_F = gelu(weights["up.weight"] @ torch.cat(list(x_TD)) + weights["up.bias"])
    y = weights["down.weight"] @ hidden_F + weights["down.bias"]
    return torch.stack([y[t * x_TD.shape[1] : (t + 1) * x_TD.shape[1]] for t in range(len(x_TD))])


def all_share_ffn(x_TD: Tensor, weights: dict[str, Tensor]) -> Tensor:
    """Each token's own FFN of the concatenation of all tokens of one row."""
    hidden_dim = weights["down.weight"].shape[1]
    tokens = []
    for t in range(len(x_TD)):
        own = slice(t * hidden_dim, (t + 1) * hidden_dim)
        hidden = gelu(weights["up.weight"][own] @ torch.cat(list(x_TD)) + weights["up.bias"][own])
        tokens.append(hidden @ weights["down.weight"][t] + weights["down.bias"][t])
    return torch.stack(tokens)


def shared_ffn(x_TD: Tensor, weights: dict[str, Tensor]) -> Tensor:
    """One FFN for all tokens of one row; `weights`: the layer's, [out, in]."""
    hidden = [gelu(weights["up.weight"] @ x_D + weights["up.bias"]) for x_D in x_TD]
    return torch.stack([weights["down.weight"] @ hidden_F + weights["down.bias"] for hidden_F in hidden])


def rankmixer_block(
    x_TD: Tensor,
    weights: dict[str, Tensor],
    norm: str,
    skip: bool = True,
    shared: bool = False,
    mixing: str = "heads",
    num_heads: int | None = None,
) -> Tensor:
    """Eq. 1 of one row, or another form of it; `weights` by the block's parameter names."""

    def normed(name: str, values_TD: Tensor) -> Tensor:
        return torch.stack([_normed(v, weights, name) for v in values_TD])

    def mix(values_TD: Tensor) -> Tensor:
        if mixing == "self_attention":
            return self_attention(values_TD, _below(weights, "mix."), num_heads or len(values_TD))
        return mix_tokens(values_TD, num_heads)

    def ffn(values_TD: Tensor) -> Tensor:
        own = _below(weights, "ffn.")
        if mixing == "concat_mlp":
            return concat_mlp(values_TD, own)
        if mixing == "share":
            return all_share_ffn(values_TD, own)
        if shared:
            return shared_ffn(values_TD, own)
        return per_token_ffn(values_TD, *(own[name] for name in ("up.weight", "up.bias", "down.weight", "down.bias")))

    sublayers = [("ffn_norm", ffn)]
    if mixing in ("heads", "self_attention"):
        sublayers.insert(0, ("mixing_norm", mix))
    for name, layer in sublayers:
        y_TD = layer(normed(name, x_TD)) if norm == "pre" else layer(x_TD)
        if skip:
            y_TD = y_TD + x_TD
        x_TD = normed(name, y_TD) if norm == "post" else y_TD
    return x_TD


def rankmixer(
    x_BTD: Tensor,
    weights: dict[str, Tensor],
    num_blocks: int,
    norm: str,
    skip: bool = True,
    shared: bool = False,
    mixing: str = "heads",
    num_heads: int | None = None,
) -> Tensor:
    """The whole backbone, mean over tokens included; `weights` by the model's parameter names. -> [B, D]."""
    rows = []
    for row_TD in x_BTD:
        x_TD = row_TD
        for n in range(num_blocks):
            block = _below(weights, f"blocks.{n}.")
            x_TD = rankmixer_block(x_TD, block, norm, skip, shared, mixing, num_heads)
        if norm == "pre":
            x_TD = torch.stack([_normed(x_D, weights, "final_norm") for x_D in x_TD])
        rows.append(x_TD.sum(dim=0) / len(x_TD))
    return torch.stack(rows)


def _normed(x_D: Tensor, weights: dict[str, Tensor], name: str) -> Tensor:
    """LayerNorm, or RMSNorm where there is no bias."""
    if f"{name}.bias" in weights:
        return layer_norm(x_D, weights[f"{name}.weight"], weights[f"{name}.bias"])
    return rms_norm(x_D, weights[f"{name}.weight"])


def _below(weights: dict[str, Tensor], prefix: str) -> dict[str, Tensor]:
    return {name.removeprefix(prefix): w for name, w in weights.items() if name.startswith(prefix)}
