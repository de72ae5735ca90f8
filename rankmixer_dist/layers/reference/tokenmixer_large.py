"""TokenMixer-Large (arXiv 2602.06563), one row and one token at a time."""

import torch
from torch import Tensor

from rankmixer_dist.layers.reference import mix_tokens, silu
from rankmixer_dist.layers.reference.norm import rms_norm


def revert_tokens(mixed_HE: Tensor, num_tokens: int) -> Tensor:
    """X of one row, value by value: head h of token t is part t of mixed token h."""
    num_heads, mixed_dim = mixed_HE.shape
    width = mixed_dim // num_tokens
    reverted = [[mixed_HE[h, t * width + i] for h in range(num_heads) for i in range(width)] for t in range(num_tokens)]
    return torch.stack([torch.stack(values) for values in reverted])


def per_token_swiglu(x_TD: Tensor, w_gate_TDF: Tensor, w_up_TDF: Tensor, w_down_TFD: Tensor) -> Tensor:
    """W_down (Swish(W_gate x) * W_up x) of one row."""
    return torch.stack(
        [(silu(x_D @ w_gate_TDF[t]) * (x_D @ w_up_TDF[t])) @ w_down_TFD[t] for t, x_D in enumerate(x_TD)]
    )


def block(x_TD: Tensor, weights: dict[str, Tensor], num_heads: int) -> Tensor:
    """Mixing and reverting of one row; `weights` by the block's parameter names."""

    def normed_ffn(name: str, values: Tensor) -> Tensor:
        normed = torch.stack([rms_norm(value, weights[f"{name}_norm.weight"]) for value in values])
        return per_token_swiglu(normed, *(weights[f"{name}_ffn.{layer}.weight"] for layer in ("gate", "up", "down")))

    mixed_HE = mix_tokens(x_TD, num_heads)
    mixed_HE = mixed_HE + normed_ffn("mixed", mixed_HE)
    return x_TD + normed_ffn("reverted", revert_tokens(mixed_HE, len(x_TD)))


def stages(
    x_BTD: Tensor, weights: dict[str, Tensor], num_blocks: int, num_heads: int, inter_residual: int
) -> list[Tensor]:
    """Pooled [B, D] of every stage, the last one last; `weights` by the model's parameter names."""
    rows = []
    for x_TD in x_BTD:
        states = [x_TD]  # X_0, X_1, ..., X_L
        pooled = []
        for n in range(1, num_blocks + 1):
            prefix = f"blocks.{n - 1}."
            own = {name.removeprefix(prefix): w for name, w in weights.items() if name.startswith(prefix)}
            state = block(states[-1], own, num_heads)
            end_of_stage = inter_residual > 0 and n % inter_residual == 0 and n < num_blocks
            if end_of_stage:
                state = state + states[n - inter_residual]
            states.append(state)
            if end_of_stage or n == num_blocks:
                final = [rms_norm(token_D, weights["final_norm.weight"]) for token_D in state]
                pooled.append(torch.stack(final).sum(dim=0) / len(final))
        rows.append(torch.stack(pooled))
    return list(torch.stack(rows, dim=1))
