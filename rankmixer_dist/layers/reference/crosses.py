"""DLRM-MLP, DCN-V2, RDCN, MMoE, Wukong and DHEN as loops over rows and tokens; `weights` by the models' names."""

import math
from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from rankmixer_dist.layers.reference import layer_norm

Weights = dict[str, Tensor]


def under(weights: Weights, prefix: str) -> Weights:
    """The weights of one module, by the names inside it."""
    return {name.removeprefix(prefix): w for name, w in weights.items() if name.startswith(prefix)}


def by_row(f: Callable[[Tensor], Tensor], x_BTD: Tensor) -> Tensor:
    """f of every row's [T, D] in turn."""
    return torch.stack([f(x_TD) for x_TD in x_BTD])


def relu(x: Tensor) -> Tensor:
    """max(x, 0)."""
    return x * (x > 0)


def softmax(x: Tensor) -> Tensor:
    """exp(x_i) / sum_j exp(x_j) of one vector."""
    exponentials = [torch.exp(value) for value in x]
    return torch.stack([e / sum(exponentials) for e in exponentials])


def mlp(x: Tensor, weights: Weights, last_is_linear: bool = False) -> Tensor:
    """ReLU layers, the last without where it is linear; weight [out, in]."""
    count = len(weights) // 2
    for i in range(count):
        x = weights[f"layers.{i}.weight"] @ x + weights[f"layers.{i}.bias"]
        if i < count - 1 or not last_is_linear:
            x = relu(x)
    return x


def dlrm_mlp(x_BTD: Tensor, weights: Weights) -> Tensor:
    """MLP of each row's tokens, end to end."""
    return by_row(lambda x_TD: mlp(torch.cat(list(x_TD)), under(weights, "mlp.")), x_BTD)


def cross(x0_W: Tensor, x_W: Tensor, weights: Weights) -> Tensor:
    """x_0 * (W x + b) + x, or x_0 * (U (V' x) + b) + x where there is a V' (`down`)."""
    reduced = weights["down.weight"] @ x_W if "down.weight" in weights else x_W
    return x0_W * (weights["up.weight"] @ reduced + weights["up.bias"]) + x_W


def mixture_cross(x0_W: Tensor, x_W: Tensor, weights: Weights) -> Tensor:
    """sum_e G_e(x) E_e(x) + x with E_e(x) = x_0 * (U_e tanh(C_e tanh(V_e' x)) + b), expert by expert."""
    num_experts, rank = weights["core"].shape[:2]
    gates = softmax(weights["gate.weight"] @ x_W)
    result = x_W
    for e in range(num_experts):
        own = slice(e * rank, (e + 1) * rank)
        h = torch.tanh(weights["down.weight"][own] @ x_W)
        h = torch.tanh(h @ weights["core"][e])
        result = result + gates[e] * (x0_W * (weights["up.weight"][:, own] @ h + weights["up.bias"]))
    return result


def attention_cross(x0_W: Tensor, x_W: Tensor, weights: Weights, slot_dim: int, temperature: float) -> Tensor:
    """x_0 * (U (A v + v) + b) + x, slot by slot."""
    query, key, value = (weights["down.weight"] @ x_W).chunk(3)
    slots = [slice(start, start + slot_dim) for start in range(0, len(value), slot_dim)]
    attended = []
    for own in slots:
        scores = [(query[own] * key[other]).sum() / (temperature * math.sqrt(slot_dim)) for other in slots]
        weighted = [a * value[other] for a, other in zip(softmax(torch.stack(scores)), slots, strict=True)]
        attended.append(sum(weighted) + value[own])
    return x0_W * (weights["up.weight"] @ torch.cat(attended) + weights["up.bias"]) + x_W


def cross_network(x0_W: Tensor, weights: Weights, layer: Callable[..., Tensor], num_layers: int) -> Tensor:
    """The layers one after the other, all on the same x_0."""
    x_W = x0_W
    for i in range(num_layers):
        x_W = layer(x0_W, x_W, under(weights, f"layers.{i}."))
    return x_W


def dcn_v2(x_BTD: Tensor, weights: Weights, num_layers: int, mixture: bool, stacked: bool) -> Tensor:
    """Cross network and MLP; the cross network alone where there is no MLP."""

    def row(x_TD: Tensor) -> Tensor:
        x_W = torch.cat(list(x_TD))
        crossed = cross_network(x_W, under(weights, "cross."), mixture_cross if mixture else cross, num_layers)
        deep = under(weights, "deep.")
        if not deep:
            return crossed
        return mlp(crossed, deep) if stacked else torch.cat([crossed, mlp(x_W, deep)])

    return by_row(row, x_BTD)


def rdcn(x_BTD: Tensor, weights: Weights, num_layers: int, slot_dim: int, temperature: float) -> Tensor:
    """The cross network with attention, then the plain one and the MLP where they are."""

    def attention(x0_W: Tensor, x_W: Tensor, layer: Weights) -> Tensor:
        return attention_cross(x0_W, x_W, layer, slot_dim, temperature)

    def row(x_TD: Tensor) -> Tensor:
        x_W = torch.cat(list(x_TD))
        found = [cross_network(x_W, under(weights, "attention_cross."), attention, num_layers)]
        if plain := under(weights, "cross."):
            found.append(cross_network(x_W, plain, cross, num_layers))
        if deep := under(weights, "deep."):
            found.append(mlp(x_W, deep))
        return torch.cat(found)

    return by_row(row, x_BTD)


def mmoe(x_BTD: Tensor, weights: Weights, num_experts: int, num_gates: int, num_layers: int) -> Tensor:
    """Every expert, then every gate's weighted sum of them."""

    def row(x_TD: Tensor) -> Tensor:
        x_W = torch.cat(list(x_TD))
        experts = []
        for e in range(num_experts):
            h = x_W
            for i in range(num_layers):
                h = relu(h @ weights[f"experts.{i}.weight"][e] + weights[f"experts.{i}.bias"][e])
            experts.append(h)
        mixed = []
        for k in range(num_gates):
            gate = softmax(weights["gates.weight"][k * num_experts : (k + 1) * num_experts] @ x_W)
            mixed.append(sum((g * h for g, h in zip(gate, experts, strict=True)), torch.zeros_like(experts[0])))
        return torch.cat(mixed)

    return by_row(row, x_BTD)


def over_tokens(x_TD: Tensor, weight_MT: Tensor) -> Tensor:
    """Token m is sum_t W_mt x_t."""
    return torch.stack([sum(w * x_D for w, x_D in zip(w_T, x_TD, strict=True)) for w_T in weight_MT])


def normed(x_TD: Tensor, weights: Weights) -> Tensor:
    """LayerNorm of each token."""
    return torch.stack([layer_norm(x_D, weights["weight"], weights["bias"]) for x_D in x_TD])


def factorization_block(x_TD: Tensor, weights: Weights) -> Tensor:
    """MLP(LN(flatten((X X') Y))) in M tokens, the T x T products written out."""
    products_TT = torch.stack([torch.stack([(x_D * y_D).sum() for y_D in x_TD]) for x_D in x_TD])
    flat = (products_TT @ weights["project.weight"].t()).flatten()
    flat = layer_norm(flat, weights["norm.weight"], weights["norm.bias"])
    return mlp(flat, under(weights, "mlp."), last_is_linear=True).reshape(-1, x_TD.shape[1])


def wukong(x_BTD: Tensor, weights: Weights, num_layers: int) -> Tensor:
    """LN([FMB; LCB] + residual), layer by layer, then the MLP."""

    def row(x_TD: Tensor) -> Tensor:
        for i in range(num_layers):
            layer = under(weights, f"layers.{i}.")
            found = [*factorization_block(x_TD, under(layer, "fm.")), *over_tokens(x_TD, layer["linear.weight"])]
            kept = over_tokens(x_TD, layer["residual.weight"]) if "residual.weight" in layer else x_TD
            x_TD = normed(torch.stack(found) + kept, under(layer, "norm."))
        return mlp(torch.cat(list(x_TD)), under(weights, "top."))

    return by_row(row, x_BTD)


def dot_interaction(x_TD: Tensor, weights: Weights) -> Tensor:
    """MLP of <x_s, x_t>, s <= t."""
    products = [(x_TD[s] * x_TD[t]).sum() for s in range(len(x_TD)) for t in range(s, len(x_TD))]
    return mlp(torch.stack(products), under(weights, "mlp."), last_is_linear=True).reshape(-1, x_TD.shape[1])


def cross_interaction(x_TD: Tensor, weights: Weights) -> Tensor:
    """The flattened tokens crossed with themselves, then W_m."""
    x_W = torch.cat(list(x_TD))
    crossed = cross(x_W, x_W, under(weights, "cross."))
    return over_tokens(crossed.reshape(x_TD.shape), weights["compress.weight"])


def encoder_layer(x_TD: Tensor, weights: Weights, num_heads: int) -> Tensor:
    """Post-norm transformer encoder layer, head by head and query by query."""
    head_dim = x_TD.shape[1] // num_heads
    stacked = [weights["query_key_value.weight"] @ x_D + weights["query_key_value.bias"] for x_D in x_TD]
    query_TD, key_TD, value_TD = (torch.stack(part) for part in zip(*(s.chunk(3) for s in stacked), strict=True))
    attended = []
    for q_D in query_TD:
        heads = []
        for h in range(num_heads):
            own = slice(h * head_dim, (h + 1) * head_dim)
            a_T = softmax(torch.stack([(q_D[own] * k_D[own]).sum() / math.sqrt(head_dim) for k_D in key_TD]))
            heads.append(sum(a * v_D[own] for a, v_D in zip(a_T, value_TD, strict=True)))
        attended.append(weights["project.weight"] @ torch.cat(heads) + weights["project.bias"])
    s_TD = normed(x_TD + torch.stack(attended), under(weights, "attention_norm."))
    hidden = [relu(weights["up.weight"] @ s_D + weights["up.bias"]) for s_D in s_TD]
    ffn_TD = torch.stack([weights["down.weight"] @ h_F + weights["down.bias"] for h_F in hidden])
    return normed(s_TD + ffn_TD, under(weights, "ffn_norm."))


def dhen(
    x_BTD: Tensor, weights: Weights, num_layers: int, interactions: Sequence[str], ensemble: str, num_heads: int
) -> Tensor:
    """LN(ensemble of the interactions + shortcut), layer by layer, then the MLP."""

    def interact(kind: str, x_TD: Tensor, own: Weights) -> Tensor:
        if kind == "dot":
            return dot_interaction(x_TD, own)
        if kind == "cross":
            return cross_interaction(x_TD, own)
        if kind == "attention":
            return over_tokens(encoder_layer(x_TD, own, num_heads), own["compress.weight"])
        return over_tokens(x_TD, own["weight"])

    def row(x_TD: Tensor) -> Tensor:
        for n in range(num_layers):
            layer = under(weights, f"layers.{n}.")
            found = [interact(kind, x_TD, under(layer, f"interactions.{i}.")) for i, kind in enumerate(interactions)]
            joined = torch.cat(found) if ensemble == "concat" else sum(found)
            kept = over_tokens(x_TD, layer["shortcut.weight"]) if "shortcut.weight" in layer else x_TD
            x_TD = normed(joined + kept, under(layer, "norm."))
        return mlp(torch.cat(list(x_TD)), under(weights, "top."))

    return by_row(row, x_BTD)
