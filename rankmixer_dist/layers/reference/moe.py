"""Sparse per-token experts, one row, one token and one expert at a time; imported by tests only.

Weights by the layers' parameter names, in their layouts.
"""

from collections.abc import Sequence

import torch
from torch import Tensor

from rankmixer_dist.layers.reference import gelu

Weights = dict[str, Tensor]


def relu_gates(x_TD: Tensor, weight_TDE: Tensor, bias_TE: Tensor) -> Tensor:
    """Eq. 10 of one row: [T, E]."""
    rows = []
    for t, x_D in enumerate(x_TD):
        logits = [x_D @ weight_TDE[t, :, e] + bias_TE[t, e] for e in range(bias_TE.shape[1])]
        rows.append(torch.stack([logit if logit > 0 else 0 * logit for logit in logits]))
    return torch.stack(rows)


def expert(x_D: Tensor, t: int, e: int, num_experts: int, w: Weights) -> Tensor:
    """Expert e of token t of one row: [D]."""
    hidden_dim = w["experts.down.weight"].shape[1]
    own = slice(e * hidden_dim, (e + 1) * hidden_dim)
    hidden_F = gelu(x_D @ w["experts.up.weight"][t, :, own] + w["experts.up.bias"][t, own])
    n = t * num_experts + e
    return hidden_F @ w["experts.down.weight"][n] + w["experts.down.bias"][n]


def mixture(x_TD: Tensor, gates_TE: Tensor, w: Weights) -> Tensor:
    """Eq. 10 of one row: sum of gate times expert."""
    tokens = []
    for t, x_D in enumerate(x_TD):
        total_D = torch.zeros_like(x_D)
        for e, gate in enumerate(gates_TE[t]):
            total_D = total_D + gate * expert(x_D, t, e, gates_TE.shape[1], w)
        tokens.append(total_D)
    return torch.stack(tokens)


def dtsi_gates(x_TD: Tensor, w: Weights) -> tuple[Tensor, Tensor]:
    """The train and the infer router's gates of one row."""
    train_TE, infer_TE = (
        relu_gates(x_TD, w[f"{router}_router.linear.weight"], w[f"{router}_router.linear.bias"])
        for router in ("train", "infer")
    )
    return train_TE, infer_TE


def dtsi_moe(x_TBD: Tensor, w: Weights, fusion: str, infer_rows: Sequence[bool]) -> Tensor:
    """A training forward; `infer_rows` are the draws of the stochastic fusions. `fusion="infer"`: a serving forward."""
    rows = []
    for b in range(x_TBD.shape[1]):
        train_TE, infer_TE = dtsi_gates(x_TBD[:, b], w)
        if fusion == "mean":
            gates_TE = 0.5 * train_TE + 0.5 * infer_TE
        elif fusion == "straight_through":
            gates_TE = train_TE + infer_TE - infer_TE.detach()
        else:
            share = float(fusion == "infer" or infer_rows[b])
            gates_TE = share * infer_TE + (1 - share) * train_TE
        rows.append(mixture(x_TBD[:, b], gates_TE, w))
    return torch.stack(rows, dim=1)


def l1(x_TBD: Tensor, w: Weights, row_weights: Sequence[float]) -> Tensor:
    """Eq. 11 without lambda, the mean over rows that weigh anything."""
    total, rows = x_TBD.new_zeros(()), 0
    for b, weight in enumerate(row_weights):
        if weight > 0:
            rows += 1
            for gates_E in dtsi_gates(x_TBD[:, b], w)[1]:
                for gate in gates_E:
                    total = total + gate
    return total / max(rows, 1)


def shares(x_TD: Tensor, w: Weights) -> Tensor:
    """softmax(h_t(s_t)) of one row: [T, R]."""
    exponentials_TR = torch.stack(
        [torch.exp(x_D @ w["router.weight"][t] + w["router.bias"][t]) for t, x_D in enumerate(x_TD)]
    )
    return torch.stack([values / values.sum() for values in exponentials_TR])


def top_k(values_R: Tensor, k: int) -> list[int]:
    """Indices of the k largest."""
    return sorted(range(len(values_R)), key=lambda j: -values_R[j].item())[:k]


def softmax_moe(x_TBD: Tensor, w: Weights, k: int, shared: bool, alpha: float) -> Tensor:
    """y = alpha sum_{top-k} softmax_i E_i, or alpha sum_{top-(k-1)} softmax_i E_i + E_0."""
    rows = []
    for b in range(x_TBD.shape[1]):
        x_TD = x_TBD[:, b]
        gates = []
        for shares_R in shares(x_TD, w):
            chosen = top_k(shares_R, k - shared)
            routed = [alpha * s if j in chosen else 0 * s for j, s in enumerate(shares_R)]
            gates.append(torch.stack([torch.ones_like(routed[0])] * shared + routed))
        rows.append(mixture(x_TD, torch.stack(gates), w))
    return torch.stack(rows, dim=1)


def balance(x_TBD: Tensor, w: Weights, k: int, row_weights: Sequence[float]) -> Tensor:
    """R sum_j f_j P_j, summed over tokens; `k`: experts chosen by the router."""
    real = [shares(x_TBD[:, b], w) for b, weight in enumerate(row_weights) if weight > 0]
    total = x_TBD.new_zeros(())
    num_tokens, routed = real[0].shape
    for t in range(num_tokens):
        for j in range(routed):
            f = sum(j in top_k(shares_TR[t], k) for shares_TR in real) / (k * len(real))
            p = sum((shares_TR[t, j] for shares_TR in real), start=x_TBD.new_zeros(())) / len(real)
            total = total + routed * f * p
    return total
