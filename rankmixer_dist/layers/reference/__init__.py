"""The same mathematics as loops straight from the papers, one row and one token at a time; imported by tests only.

Weights are plain tensors in the layouts of the layers' parameters, so that both run on the same leaves.
"""

import math
from collections.abc import Sequence

import torch
from torch import Tensor


def gelu(x: Tensor) -> Tensor:
    """x Phi(x), Phi the normal distribution function."""
    return x * 0.5 * (1 + torch.erf(x / math.sqrt(2)))


def silu(x: Tensor) -> Tensor:
    """x sigmoid(x)."""
    return x / (1 + torch.exp(-x))


def layer_norm(x_D: Tensor, weight_D: Tensor, bias_D: Tensor, eps: float = 1e-5) -> Tensor:
    """(x - mean) / sqrt(variance + eps) * weight + bias."""
    centred_D = x_D - x_D.sum() / len(x_D)
    variance = (centred_D * centred_D).sum() / len(x_D)
    return centred_D / torch.sqrt(variance + eps) * weight_D + bias_D


def tokenize(
    x_BW: Tensor, group_dims: Sequence[int], group_tokens: Sequence[int], weights: Sequence[Tensor], biases: Tensor
) -> Tensor:
    """Eq. 2: token t of group g is W_t e_g + b_t. `weights`: [w_g, D] per token; `biases`: [T, D]. -> [B, T, D]."""
    rows = []
    for x_W in x_BW:
        tokens: list[Tensor] = []
        start = 0
        for width, count in zip(group_dims, group_tokens, strict=True):
            for _ in range(count):
                tokens.append(x_W[start : start + width] @ weights[len(tokens)] + biases[len(tokens)])
            start += width
        rows.append(torch.stack(tokens))
    return torch.stack(rows)


def mix_tokens(x_TD: Tensor, num_heads: int | None = None) -> Tensor:
    """Eq. 3-5 of one row, value by value: head h of token t becomes part t of token h. H = T by default."""
    num_tokens, token_dim = x_TD.shape
    num_heads = num_heads or num_tokens
    width = token_dim // num_heads
    mixed = [[x_TD[t, h * width + i] for t in range(num_tokens) for i in range(width)] for h in range(num_heads)]
    return torch.stack([torch.stack(values) for values in mixed])


def per_token_ffn(x_TD: Tensor, w_up_TDF: Tensor, b_up_TF: Tensor, w_down_TFD: Tensor, b_down_TD: Tensor) -> Tensor:
    """Eq. 6-9 of one row."""
    tokens = []
    for t, x_D in enumerate(x_TD):
        hidden_F = gelu(x_D @ w_up_TDF[t] + b_up_TF[t])
        tokens.append(hidden_F @ w_down_TFD[t] + b_down_TD[t])
    return torch.stack(tokens)


def target_attention(
    query_BD: Tensor,
    keys_ND: Tensor,
    lengths: Sequence[int],
    layers: Sequence[tuple[Tensor, Tensor]],
    softmax: bool = False,
) -> Tensor:
    """DIN pooling, key by key; keys row after row; `layers`: the unit's weights [out, in] and biases. -> [B, D]."""
    rows = []
    for q_D, keys_LD in zip(query_BD, keys_ND.split(list(lengths)), strict=True):
        scores = []
        for k_D in keys_LD:
            x = torch.cat([q_D, k_D, q_D - k_D, q_D * k_D])
            for weight, bias in layers[:-1]:
                x = silu(weight @ x + bias)
            weight, bias = layers[-1]
            scores.append((weight @ x + bias)[0])
        if softmax and scores:
            exponentials = [torch.exp(score) for score in scores]
            scores = [e / sum(exponentials) for e in exponentials]
        pooled_D = torch.zeros_like(q_D)
        for score, k_D in zip(scores, keys_LD, strict=True):
            pooled_D = pooled_D + score * k_D
        rows.append(pooled_D)
    return torch.stack(rows)


def mean_pooling(keys_ND: Tensor, lengths: Sequence[int]) -> Tensor:
    """Mean of each row's keys, zeros for none. -> [B, D]."""
    rows = []
    for keys_LD in keys_ND.split(list(lengths)):
        total_D = keys_ND.new_zeros(keys_ND.shape[1])
        for k_D in keys_LD:
            total_D = total_D + k_D
        rows.append(total_D / max(len(keys_LD), 1))
    return torch.stack(rows)


def normalize_numerics(x_BN: Tensor, mean: Sequence[float], std: Sequence[float], bound: float) -> Tensor:
    """Value and missing indicator of each numeric in turn. -> [B, 2N]."""
    rows = []
    for x_N in x_BN.tolist():
        values: list[float] = []
        for x, m, s in zip(x_N, mean, std, strict=True):
            values += [0.0, 1.0] if math.isnan(x) else [min(max((x - m) / s, -bound), bound), 0.0]
        rows.append(values)
    return torch.tensor(rows, dtype=x_BN.dtype)


def task_heads(pooled_BD: Tensor, layers: Sequence[tuple[Tensor, Tensor]]) -> Tensor:
    """Each task's own layers, GELU between them; `layers`: weight [K, in, out] and bias [K, out]. -> [B, K]."""
    rows = []
    for pooled_D in pooled_BD:
        logits = []
        for k in range(len(layers[0][0])):
            x = pooled_D
            for i, (weight, bias) in enumerate(layers):
                x = (gelu(x) if i else x) @ weight[k] + bias[k]
            logits.append(x[0])
        rows.append(torch.stack(logits))
    return torch.stack(rows)


def multi_task_loss(
    logits_BK: Tensor, labels_BK: Tensor, weights: Sequence[float], task_weights: Sequence[float], global_weight: float
) -> Tensor:
    """Weighted cross-entropy, row by row and task by task."""
    loss = logits_BK.new_zeros(())
    for logits_K, labels_K, weight in zip(logits_BK, labels_BK, weights, strict=True):
        for logit, label, task_weight in zip(logits_K, labels_K, task_weights, strict=True):
            p = 1 / (1 + torch.exp(-logit))
            entropy = -label * torch.log(p) - (1 - label) * torch.log(1 - p)
            loss = loss + task_weight * weight * entropy / global_weight
    return loss
