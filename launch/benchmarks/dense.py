"""RankMixer's backbone, forward and training, against a plain GEMM: the share of the machine's rate that it reaches."""

import functools
from collections.abc import Callable

import torch

from benchmarks import bf16
from benchmarks.figure import Figure, interleaved
from rankmixer_dist.config import RunConfig
from rankmixer_dist.models.backbones import build_backbone
from rankmixer_dist.train.build import backbone_options
from rankmixer_dist.train.memory import keep_freed_memory

ROWS = 256
EMULATED_ROWS = 32
"""Where bf16 is emulated, which takes a hundred times as long."""


def measure(config: RunConfig) -> list[Figure]:
    """The config's backbone at its T and D on 256 rows, in fp32 and bf16; without tokenizer, heads and optimizer."""
    keep_freed_memory(torch.device("cpu"))  # as training does
    figures = _measure(config, torch.float32, ROWS, repeats=7)
    if not bf16.is_emulated():
        return figures + _measure(config, torch.bfloat16, ROWS, repeats=7)
    print(f"bf16 is emulated here: {EMULATED_ROWS} rows, median of 3")
    return figures + _measure(config, torch.bfloat16, EMULATED_ROWS, repeats=3)


def _measure(config: RunConfig, dtype: torch.dtype, rows: int, repeats: int) -> list[Figure]:
    torch.manual_seed(config.seed)
    model = config.model
    num_tokens, token_dim = model.num_tokens(config.features.num_tokens), model.token_dim
    backbone = build_backbone(
        model.backbone,
        num_tokens=num_tokens,
        token_dim=token_dim,
        **backbone_options(model, num_tasks=len(config.features.tasks)),
    ).to(dtype)
    cost = backbone.cost()
    # As a tokenizer hands them over, token-major; training goes on to the tokenizer, so tokens need a gradient.
    x_BTD = torch.randn(num_tokens, rows, token_dim, dtype=dtype).transpose(0, 1).requires_grad_()
    forward, train = _passes(backbone, x_BTD)
    shapes = gemm_shapes(config, rows)
    gemms = {f"GEMM {'x'.join(map(str, shape))}": _gemm(shape, dtype) for shape in shapes}
    seconds = interleaved({"forward": forward, "train": train, **gemms}, repeats=repeats)
    rates = {
        name: 2 * shape[0] * shape[1] * shape[2] / seconds[name] for name, shape in zip(gemms, shapes, strict=True)
    }
    best = max(rates, key=rates.__getitem__)
    name = str(dtype).removeprefix("torch.")
    return [
        Figure(
            f"{model.backbone} {what}, {name}", flops * rows / seconds[what] / 1e9, "GFLOP/s", rates[best] / 1e9, best
        )
        for what, flops in (("forward", cost.flops_per_row_forward), ("train", cost.flops_per_row_train))
    ]


def gemm_shapes(config: RunConfig, rows: int) -> list[tuple[int, int, int]]:
    """A square product, and one as large as all tokens' first FFN layer together; the faster one is the limit."""
    model = config.model
    tokens = model.num_tokens(config.features.num_tokens)
    square = min(2048, 8 * rows)
    return [(square, square, square), (rows * tokens, model.token_dim, 3 * model.token_dim)]


def _passes(backbone: torch.nn.Module, x_BTD: torch.Tensor) -> tuple[Callable[[], object], Callable[[], object]]:
    def forward() -> None:
        with torch.no_grad():
            backbone(x_BTD)

    def train() -> None:
        backbone.zero_grad(set_to_none=True)
        x_BTD.grad = None
        backbone(x_BTD).sum().backward()

    return forward, train


def _gemm(shape: tuple[int, int, int], dtype: torch.dtype) -> Callable[[], object]:
    rows, inner, columns = shape
    return functools.partial(torch.mm, torch.randn(rows, inner, dtype=dtype), torch.randn(inner, columns, dtype=dtype))
