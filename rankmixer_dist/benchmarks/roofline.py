"""What a GPU's memory costs a backbone beside its GEMMs: an estimate from the operators that a pass calls.

Every operator that is no product reads its inputs and writes its outputs once, at the memory's rate; a product takes
its FLOPs at a plain GEMM's rate. Nothing overlaps and nothing stays in a cache, launches cost nothing.
"""

from collections import Counter
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import flop_registry

from rankmixer_dist.benchmarks.dense import PUBLISHED, ROWS_ON_GPU, Shape
from rankmixer_dist.benchmarks.figure import Figure
from rankmixer_dist.cost.gpu import gpu_of_device
from rankmixer_dist.cost.peak import peak_flops

if TYPE_CHECKING:
    from rankmixer_dist.config import RunConfig

GPU_NAME = "NVIDIA H100 80GB HBM3"
GEMM_SHARE, MEMORY_SHARE = 0.8, 0.9
"""Of the sheet's bf16 and memory rates, what large products and copies are taken to reach."""


def measure(config: "RunConfig") -> list[Figure]:
    """RankMixer-100M and 1B in bf16, forward and training; prints bytes by operator."""
    gpu, peak = gpu_of_device(GPU_NAME), peak_flops(GPU_NAME, "bf16")
    assert gpu is not None and peak is not None
    gemm, memory = GEMM_SHARE * peak, MEMORY_SHARE * gpu.memory_bandwidth
    print(f"estimate for {GPU_NAME}: products at {gemm / 1e12:,.0f} TFLOP/s, memory at {memory / 1e12:,.2f} TB/s")
    figures = []
    for shape in PUBLISHED:
        rows = ROWS_ON_GPU[-1]
        for what, counted in passes(shape, rows).items():
            seconds = counted.flops / gemm + counted.bytes / memory
            rate = counted.flops / seconds / 1e9
            figures.append(
                Figure(f"{shape.name} {what}, bf16, {rows} rows, estimate", rate, "GFLOP/s", gemm / 1e9, "GEMM")
            )
            print(
                f"{shape.name} {what}: {counted.flops / 1e12:.3g} TFLOP, {counted.bytes / 1e9:.3g} GB beside products"
            )
            for name, size in counted.by_operator.most_common():
                print(f"  {name:<32} {counted.calls[name]:4} calls {size / 1e9:8.3f} GB")
    return figures


class Counted(TorchDispatchMode):
    """FLOPs of products and bytes of all else, by operator, of what runs inside."""

    def __init__(self) -> None:
        super().__init__()
        self.flops = 0
        self.by_operator: Counter[str] = Counter()
        self.calls: Counter[str] = Counter()

    @property
    def bytes(self) -> int:
        """Of all operators that are no products."""
        return sum(self.by_operator.values())

    def __torch_dispatch__(self, func: Any, types: Any, args: tuple = (), kwargs: dict | None = None) -> Any:
        result = func(*args, **(kwargs or {}))
        outputs = _tensors(result)
        name = func.overloadpacket.__name__
        if func.overloadpacket in flop_registry:
            self.flops += flop_registry[func.overloadpacket](*args, **(kwargs or {}), out_val=result)
            if name in ("baddbmm", "addmm"):
                # cuBLAS adds what is there already: the bias is written out first, and read again by the product.
                self._count(f"{name}'s bias", 2 * sum(map(_bytes, outputs)))
        elif not func.is_view and name not in ("empty", "empty_like", "new_empty", "detach"):
            inputs = _tensors((args, kwargs))
            self._count(name, sum(map(_bytes, [*inputs, *outputs])))
        return result

    def _count(self, name: str, size: int) -> None:
        self.by_operator[name] += size
        self.calls[name] += 1


def passes(shape: Shape, rows: int) -> dict[str, Counted]:
    """A forward pass, and one with its backward, on the meta device in bf16."""
    with torch.device("meta"):
        backbone = shape.build().bfloat16()
        x_TBD = torch.empty(shape.num_tokens, rows, shape.token_dim, dtype=torch.bfloat16)
    x_BTD = x_TBD.transpose(0, 1).requires_grad_()
    gradient_BD = torch.empty(rows, backbone.out_dim, device="meta")

    def forward() -> None:
        with torch.no_grad():
            backbone(x_BTD)

    def train() -> None:
        backbone(x_BTD).out_BD.backward(gradient_BD)

    return {"forward": counted(forward), "train": counted(train)}


def counted(run: Callable[[], object]) -> Counted:
    """What `run` calls."""
    mode = Counted()
    with mode:
        run()
    return mode


def _tensors(values: Any) -> list[Tensor]:
    return [value for value in tree_leaves(values) if isinstance(value, Tensor)]


def _bytes(tensor: Tensor) -> int:
    """Of the values that are there; those that a view repeats count once."""
    there = 1
    for size, stride in zip(tensor.shape, tensor.stride(), strict=True):
        there *= size if stride else 1
    return there * tensor.element_size()
