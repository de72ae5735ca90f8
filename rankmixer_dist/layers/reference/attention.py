"""Attention between tokens straight from the papers, one row, head and token at a time; imported by tests only."""

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from rankmixer_dist.layers.reference import layer_norm, per_token_ffn

Heads = list[list[Tensor]]
"""Vectors [d] by head and token."""


def attend(queries: Heads, keys: Heads, values: Heads, scaled: bool = True) -> list[Tensor]:
    """Of each token, the heads' weighted sums of values, side by side. -> T vectors [H d]."""
    tokens = []
    for i in range(len(queries[0])):
        heads = []
        for query, key, value in zip(queries, keys, values, strict=True):
            scores = [(query[i] * k_d).sum() / (math.sqrt(len(k_d)) if scaled else 1) for k_d in key]
            exponentials = [torch.exp(score) for score in scores]
            pooled_d = torch.zeros_like(value[0])
            for e, v_d in zip(exponentials, value, strict=True):
                pooled_d = pooled_d + e / sum(exponentials) * v_d
            heads.append(pooled_d)
        tokens.append(torch.cat(heads))
    return tokens


def interacting_layer(x_TD: Tensor, w_OD: Tensor, num_heads: int, scaled: bool) -> Tensor:
    """AutoInt, eq. 5-8 of one row; `w_OD`: rows by head, then query, key, value and residual, as `nn.Linear` has it."""
    w_H4dD = w_OD.reshape(num_heads, 4, -1, x_TD.shape[1])
    queries, keys, values = ([[w_H4dD[h, i] @ x for x in x_TD] for h in range(num_heads)] for i in range(3))
    attended = attend(queries, keys, values, scaled)
    residual = [torch.cat([w_H4dD[h, 3] @ x for h in range(num_heads)]) for x in x_TD]
    return torch.stack([(a + r).clamp(min=0) for a, r in zip(attended, residual, strict=True)])


def autoint(x_BTD: Tensor, weights: dict[str, Tensor], num_layers: int, num_heads: int, scaled: bool) -> Tensor:
    """The whole backbone; `weights` by the model's parameter names. -> [B, T H d']."""
    rows = []
    for row_TD in x_BTD:
        x_TD = row_TD
        for n in range(num_layers):
            x_TD = interacting_layer(x_TD, weights[f"layers.{n}.projections.weight"], num_heads, scaled)
        rows.append(torch.cat(list(x_TD)))
    return torch.stack(rows)


def per_token_attention(x_TD: Tensor, weights: dict[str, Tensor], num_heads: int) -> Tensor:
    """Heterogeneous attention of one row: token t's own Q, K, V and O; `weights` by the layer's parameter names."""
    num_tokens, token_dim = x_TD.shape
    w_TDH3d = weights["qkv.weight"].reshape(num_tokens, token_dim, num_heads, 3, -1)
    b_TH3d = weights["qkv.bias"].reshape(num_tokens, num_heads, 3, -1)
    queries, keys, values = (
        [[x @ w_TDH3d[t, :, h, i] + b_TH3d[t, h, i] for t, x in enumerate(x_TD)] for h in range(num_heads)]
        for i in range(3)
    )
    return _project(attend(queries, keys, values), weights)


def composite_attention(x_TD: Tensor, weights: dict[str, Tensor], num_heads: int) -> Tensor:
    """Hiformer's attention of one row: token t's query, key and value are sums over maps of all tokens s."""
    num_tokens, token_dim = x_TD.shape
    up_3I, bias_3 = weights["up.weight"], weights["up.bias"]
    # The full [T D, T H d] matrices; of low rank if there is a first factor, [3 r, T D].
    if "down.weight" in weights:
        rank = up_3I.shape[1]
        matrices = [weights["down.weight"][i * rank : (i + 1) * rank].T @ up_3I[i] for i in range(3)]
    else:
        matrices = [up_3I[i] for i in range(3)]
    parts: list[Heads] = []
    for matrix, bias in zip(matrices, bias_3, strict=True):
        map_TDHTd = matrix.reshape(num_tokens, token_dim, num_heads, num_tokens, -1)
        bias_HTd = bias.reshape(num_heads, num_tokens, -1)
        parts.append(
            [
                [sum(x @ map_TDHTd[s, :, h, t] for s, x in enumerate(x_TD)) + bias_HTd[h, t] for t in range(num_tokens)]
                for h in range(num_heads)
            ]
        )
    queries, keys, values = parts
    return _project(attend(queries, keys, values), weights)


def _project(attended: list[Tensor], weights: dict[str, Tensor]) -> Tensor:
    out, bias = weights["out.weight"], weights["out.bias"]
    return torch.stack([o @ out[t] + bias[t] for t, o in enumerate(attended)])


def attention_block(x_TD: Tensor, weights: dict[str, Tensor], kind: str, num_heads: int, norm: str) -> Tensor:
    """One block of one row around "per_token" or "composite" attention; `weights` by the block's parameter names."""
    layer = {"per_token": per_token_attention, "composite": composite_attention}[kind]
    attention_weights = _below("attention.", weights)

    def normed(name: str, values_TD: Tensor) -> Tensor:
        return torch.stack([layer_norm(v, weights[f"{name}.weight"], weights[f"{name}.bias"]) for v in values_TD])

    def ffn(values_TD: Tensor) -> Tensor:
        names = ("ffn.up.weight", "ffn.up.bias", "ffn.down.weight", "ffn.down.bias")
        return per_token_ffn(values_TD, *(weights[name] for name in names))

    if norm == "post":
        s_TD = normed("attention_norm", x_TD + layer(x_TD, attention_weights, num_heads))
        return normed("ffn_norm", s_TD + ffn(s_TD))
    s_TD = x_TD + layer(normed("attention_norm", x_TD), attention_weights, num_heads)
    return s_TD + ffn(normed("ffn_norm", s_TD))


def attention_stack(
    x_BTD: Tensor, weights: dict[str, Tensor], kinds: Sequence[str], num_heads: int, norm: str
) -> Tensor:
    """Blocks of the given kinds, then the mean over tokens; `weights` by the model's parameter names. -> [B, D]."""
    rows = []
    for row_TD in x_BTD:
        x_TD = row_TD
        for n, kind in enumerate(kinds):
            x_TD = attention_block(x_TD, _below(f"blocks.{n}.", weights), kind, num_heads, norm)
        if norm == "pre":
            final = weights["final_norm.weight"], weights["final_norm.bias"]
            x_TD = torch.stack([layer_norm(x_D, *final) for x_D in x_TD])
        rows.append(sum(x_TD) / len(x_TD))
    return torch.stack(rows)


def _below(prefix: str, weights: dict[str, Tensor]) -> dict[str, Tensor]:
    return {name.removeprefix(prefix): w for name, w in weights.items() if name.startswith(prefix)}
