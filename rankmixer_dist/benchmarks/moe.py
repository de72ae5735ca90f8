"""Sparse inference of a DTSI layer against the dense evaluation of the same experts: work skipped, not masked."""

from collections.abc import Callable

import torch
from torch import Tensor

from rankmixer_dist.benchmarks import bf16
from rankmixer_dist.benchmarks.device import measured_device
from rankmixer_dist.benchmarks.figure import Figure, interleaved
from rankmixer_dist.config import DTSIConfig, RunConfig
from rankmixer_dist.layers.dtsi_moe import DTSIMoE
from rankmixer_dist.train.memory import keep_freed_memory

ROWS = (256, 2048)
EMULATED_ROWS = (32,)
"""Where bf16 is emulated, which takes a hundred times as long."""


def measure(config: RunConfig) -> list[Figure]:
    """One layer at the config's T, D, E, F and active ratio, in fp32 and bf16; the router counts on both sides."""
    moe = config.model.mixture
    assert isinstance(moe, DTSIConfig), "bench.py sees to it"
    device = measured_device()
    keep_freed_memory(device)  # as evaluation does
    figures = [figure for rows in ROWS for figure in _measure(config, moe, device, torch.float32, rows, repeats=5)]
    emulated = device.type == "cpu" and bf16.is_emulated()
    if emulated:
        print("bf16 is emulated here: fewer rows, measured once")
    for rows in EMULATED_ROWS if emulated else ROWS:
        figures += _measure(config, moe, device, torch.bfloat16, rows, repeats=1 if emulated else 5)
    return figures


def _measure(
    config: RunConfig, moe: DTSIConfig, device: torch.device, dtype: torch.dtype, rows: int, repeats: int
) -> list[Figure]:
    torch.manual_seed(config.seed)
    model = config.model
    num_tokens, token_dim = model.num_tokens(config.features.num_tokens), model.token_dim
    layer = DTSIMoE(
        num_tokens=num_tokens,
        token_dim=token_dim,
        num_experts=moe.num_experts,
        hidden_dim=round(model.rankmixer.hidden_ratio * token_dim),
    ).eval()
    x_TBD = torch.randn(num_tokens, rows, token_dim)
    _open(layer, x_TBD, moe.active_ratio)
    layer, x_TBD = layer.to(device, dtype), x_TBD.to(device, dtype)
    seconds = interleaved(_passes(layer, x_TBD), repeats=repeats, device=device)
    with torch.inference_mode():
        active = layer(x_TBD)[1].active_T.mean().item()
    what = f"{str(dtype).removeprefix('torch.')}, {rows} rows, {active:.3f} active"
    rates = {name: rows / taken for name, taken in seconds.items()}
    speedup = rates["sparse"] / rates["dense"]
    return [
        Figure(f"sparse inference, {what}", rates["sparse"], "rows/s", rates["dense"], "all experts, same gates"),
        Figure(f"speed-up, {what}", speedup, "x", 1 / active, "work that is left out altogether"),
    ]


def _passes(layer: DTSIMoE, x_TBD: Tensor) -> dict[str, Callable[[], object]]:
    @torch.inference_mode()
    def sparse() -> None:
        layer(x_TBD)

    @torch.inference_mode()
    def dense() -> None:
        layer.experts.dense(x_TBD, layer.infer_router(x_TBD))

    return {"sparse": sparse, "dense": dense}


@torch.no_grad()
def _open(layer: DTSIMoE, x_TBD: Tensor, active_ratio: float) -> None:
    """Sets the router's biases so that the gates are open for that share of rows; tokens differ, as in Fig. 4."""
    num_tokens = len(x_TBD)
    spread_T = torch.linspace(0.5, 1.5, num_tokens) * active_ratio if num_tokens > 1 else torch.tensor([active_ratio])
    router = layer.infer_router.linear
    logits_TBE = router(x_TBD)
    for t, share in enumerate(spread_T.tolist()):
        router.bias[t] -= torch.quantile(logits_TBE[t], 1 - share, dim=0)
