"""Tokenizers, one row and one token at a time; an MLP is a list of weights [in, out] and biases."""

from collections.abc import Sequence

import torch
from torch import Tensor

from rankmixer_dist.layers.reference import gelu

MLP = Sequence[tuple[Tensor, Tensor]]


def mlp(x: Tensor, layers: MLP) -> Tensor:
    """Linear layers with GELU between them."""
    for i, (weight, bias) in enumerate(layers):
        x = (gelu(x) if i else x) @ weight + bias
    return x


def group_tokens(x_BW: Tensor, group_dims: Sequence[int], token_mlps: Sequence[Sequence[MLP]]) -> Tensor:
    """X_t = MLP_t(concat(G_g)) for each token t of group g; `token_mlps`: of each group. -> [B, T, D]."""
    rows = []
    for x_W in x_BW:
        tokens = []
        start = 0
        for dim, mlps in zip(group_dims, token_mlps, strict=True):
            tokens += [mlp(x_W[start : start + dim], layers) for layers in mlps]
            start += dim
        rows.append(torch.stack(tokens))
    return torch.stack(rows)


def chunk_tokens(x_BW: Tensor, num_chunks: int, token_mlps: Sequence[MLP]) -> Tensor:
    """Eq. 2: X_i = Proj_i(e[d (i - 1) : d i]), with zeros after the end. -> [B, N, D]."""
    width = 1
    while width * num_chunks < x_BW.shape[1]:
        width += 1
    rows = []
    for x_W in x_BW:
        tokens = []
        for i, layers in enumerate(token_mlps):
            zero = x_W.new_zeros(())
            places = range(width * i, width * (i + 1))
            tokens.append(mlp(torch.stack([x_W[p] if p < len(x_W) else zero for p in places]), layers))
        rows.append(torch.stack(tokens))
    return torch.stack(rows)


def auto_split_tokens(x_BW: Tensor, num_splits: int, layers: MLP) -> Tensor:
    """[X_1; ...; X_N] = split(MLP(all features)). -> [B, N, D]."""
    rows = []
    for x_W in x_BW:
        y = mlp(x_W, layers)
        width = len(y) // num_splits
        rows.append(torch.stack([y[i * width : (i + 1) * width] for i in range(num_splits)]))
    return torch.stack(rows)


def with_global_token(x_BW: Tensor, x_BTD: Tensor, layers: MLP) -> Tensor:
    """[X_G; X_1; ...], X_G = MLP_g(all features). -> [B, T + 1, D]."""
    return torch.stack(
        [torch.stack([mlp(x_W, layers), *tokens_TD]) for x_W, tokens_TD in zip(x_BW, x_BTD, strict=True)]
    )
