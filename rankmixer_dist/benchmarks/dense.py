"""RankMixer's backbone, forward and training, against a plain GEMM: the share of the device's rate that it reaches.

Needs torch and the layers alone, so that a machine can be tried before anything else is installed there.
"""

import functools
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch

from rankmixer_dist.benchmarks import bf16
from rankmixer_dist.benchmarks.device import measured_device
from rankmixer_dist.benchmarks.figure import Figure, interleaved
from rankmixer_dist.cost.peak import Rate
from rankmixer_dist.models.backbone import Backbone
from rankmixer_dist.models.counted import count_part
from rankmixer_dist.models.rankmixer import RankMixer
from rankmixer_dist.train.activations import kept_bytes
from rankmixer_dist.train.memory import keep_freed_memory

if TYPE_CHECKING:
    from rankmixer_dist.config import RunConfig

ROWS = 256
EMULATED_ROWS = 32
"""Where bf16 is emulated, which takes a hundred times as long."""
ROWS_ON_GPU = (512, 4096)
_REPEATS_ON_GPU: dict[Rate, int] = {"bf16": 30, "tf32": 10, "fp32": 5}
_WARM_UP_ON_GPU = 3
_SQUARE_ON_GPU = 8192
_DTYPES: dict[Rate, torch.dtype] = {"bf16": torch.bfloat16, "tf32": torch.float32, "fp32": torch.float32}


@dataclass(frozen=True)
class Shape:
    """A backbone on tokens of a size; `build` makes it in fp32 on the CPU."""

    name: str
    num_tokens: int
    token_dim: int
    build: Callable[[], Backbone]


def published(name: str, num_tokens: int, token_dim: int, hidden_dim: int) -> Shape:
    """A RankMixer of two blocks."""
    build = functools.partial(
        RankMixer, num_tokens=num_tokens, token_dim=token_dim, num_blocks=2, hidden_dim=hidden_dim
    )
    return Shape(name, num_tokens, token_dim, build)


PUBLISHED = (published("RankMixer-100M", 16, 768, 2176), published("RankMixer-1B", 32, 1536, 5632))
"""Those of configs/rankmixer_100m.yaml and configs/rankmixer_1b.yaml."""


def measure(config: "RunConfig") -> list[Figure]:
    """The config's backbone at its T and D, without tokenizer, heads and optimizer.

    On a CPU 256 rows in fp32 and bf16; on a GPU 512 and 4,096 rows in bf16, TF32 and fp32, and the memory it takes.
    """
    from rankmixer_dist.models.backbones import build_backbone
    from rankmixer_dist.train.build import backbone_options

    model = config.model
    num_tokens = model.num_tokens(config.features.num_tokens)
    options = backbone_options(model, num_tasks=len(config.features.tasks))
    build = functools.partial(
        build_backbone, model.backbone, num_tokens=num_tokens, token_dim=model.token_dim, **options
    )
    shape = Shape(model.backbone, num_tokens, model.token_dim, build)
    device = measured_device()
    if device.type == "cuda":
        return on_gpu(shape, device, seed=config.seed)
    keep_freed_memory(device)  # as training does
    figures = measured(shape, "fp32", device, rows=ROWS, repeats=7, seed=config.seed)
    if not bf16.is_emulated():
        return figures + measured(shape, "bf16", device, rows=ROWS, repeats=7, seed=config.seed)
    print(f"bf16 is emulated here: {EMULATED_ROWS} rows, median of 3")
    return figures + measured(shape, "bf16", device, rows=EMULATED_ROWS, repeats=3, seed=config.seed)


def on_gpu(shape: Shape, device: torch.device, *, seed: int = 1) -> list[Figure]:
    """All figures of a shape on a GPU: seconds for the 100M shape, a minute for 1B (estimated for an H100)."""
    figures = []
    for rate, repeats in _REPEATS_ON_GPU.items():
        for rows in ROWS_ON_GPU:
            figures += measured(
                shape,
                rate,
                device,
                rows=rows,
                repeats=repeats,
                seed=seed,
                warm_up=_WARM_UP_ON_GPU,
                where=f", {rows} rows",
            )
    return figures


def measured(
    shape: Shape,
    rate: Rate,
    device: torch.device,
    *,
    rows: int,
    repeats: int,
    seed: int = 1,
    warm_up: int = 1,
    where: str = "",
) -> list[Figure]:
    """Forward and training against the faster of two GEMMs in the same numbers; on a GPU the memory of training too."""
    torch.manual_seed(seed)
    dtype = _DTYPES[rate]
    backbone = shape.build().to(device, dtype)
    tokens_BTD = torch.empty(1, shape.num_tokens, shape.token_dim, device="meta", requires_grad=True)
    cost = count_part(shape.name, backbone, tokens_BTD)
    # As a tokenizer hands them over, token-major; training goes on to the tokenizer, so tokens need a gradient.
    x_TBD = torch.randn(shape.num_tokens, rows, shape.token_dim, dtype=dtype, device=device)
    x_BTD = x_TBD.transpose(0, 1).requires_grad_()
    forward, train = _passes(backbone, x_BTD)
    sizes = gemm_shapes(shape, rows, device)
    gemms = {f"GEMM {'x'.join(map(str, size))}": _gemm(size, dtype, device) for size in sizes}
    runs = {"forward": forward, "train": train, **gemms}
    with _tf32(rate == "tf32"):
        seconds = interleaved(runs, repeats=repeats, device=device, warm_up=warm_up)
        memory = [] if device.type == "cpu" else [_memory(backbone, x_BTD, f"{shape.name} train, {rate}{where}", train)]
    rates = {name: 2 * size[0] * size[1] * size[2] / seconds[name] for name, size in zip(gemms, sizes, strict=True)}
    best = max(rates, key=rates.__getitem__)
    return [
        Figure(
            f"{shape.name} {what}, {rate}{where}",
            flops * rows / seconds[what] / 1e9,
            "GFLOP/s",
            rates[best] / 1e9,
            best,
        )
        for what, flops in (("forward", cost.flops_per_row_forward), ("train", cost.flops_per_row_train))
    ] + memory


def gemm_shapes(shape: Shape, rows: int, device: torch.device) -> list[tuple[int, int, int]]:
    """A square product, and one as large as all tokens' first FFN layer together; the faster one is the limit."""
    square = _SQUARE_ON_GPU if device.type == "cuda" else min(2048, 8 * rows)
    return [(square, square, square), (rows * shape.num_tokens, shape.token_dim, 3 * shape.token_dim)]


def _passes(backbone: torch.nn.Module, x_BTD: torch.Tensor) -> tuple[Callable[[], object], Callable[[], object]]:
    def forward() -> None:
        with torch.no_grad():
            backbone(x_BTD)

    def train() -> None:
        backbone.zero_grad(set_to_none=True)
        x_BTD.grad = None
        backbone(x_BTD).out_BD.sum().backward()

    return forward, train


def _memory(backbone: Backbone, x_BTD: torch.Tensor, name: str, train: Callable[[], object]) -> Figure:
    """The largest memory of a training pass beside weights and tokens, against what can be told without a device."""
    device = x_BTD.device
    backbone.zero_grad(set_to_none=True)
    x_BTD.grad = None
    torch.cuda.synchronize(device)
    torch.cuda.reset_peak_memory_stats(device)
    before = torch.cuda.memory_allocated(device)
    train()
    torch.cuda.synchronize(device)
    peak = torch.cuda.max_memory_allocated(device) - before
    gradients = sum(p.numel() * p.element_size() for p in (*backbone.parameters(), x_BTD))
    there = [*backbone.parameters(), x_BTD]
    kept = kept_bytes(lambda: backbone(x_BTD), besides=there)
    against = "what is kept for the backward pass and all gradients, counted"
    return Figure(f"{name}, peak memory", peak / 2**30, "GiB", (kept + gradients) / 2**30, against)


def _gemm(size: tuple[int, int, int], dtype: torch.dtype, device: torch.device) -> Callable[[], object]:
    rows, inner, columns = size
    left = torch.randn(rows, inner, dtype=dtype, device=device)
    return functools.partial(torch.mm, left, torch.randn(inner, columns, dtype=dtype, device=device))


@contextmanager
def _tf32(on: bool) -> Iterator[None]:
    switch = torch.backends.cuda.matmul
    before, switch.allow_tf32 = switch.allow_tf32, on
    try:
        yield
    finally:
        switch.allow_tf32 = before
