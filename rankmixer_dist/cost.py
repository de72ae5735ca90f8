"""Size and arithmetic of the dense part in closed form, and the peak rates that it is compared with.

Convention: 2 FLOPs per multiply-add of every matrix product, forward; three times that in training, for the gradients
of both factors: 2 and 6 per weight and row where a row uses a weight once. Counted are all products with weights, and
the one without, pooling weights times keys. Left out: biases, activations, norms, token mixing and all else that is
element-wise, the optimizer and the tables. Sequences count at the length they are padded to, as they are computed.
"""

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Literal


@dataclass(frozen=True)
class Part:
    """One part of the dense model: its name, parameters, and FLOPs per row without and with the backward pass."""

    name: str
    parameters: int
    flops_per_row_forward: int
    flops_per_row_train: int


@dataclass(frozen=True)
class DenseCost:
    """Parameters and FLOPs of a dense model, the sum over its parts."""

    parts: tuple[Part, ...]

    @property
    def parameters(self) -> int:
        """Trainable parameters, the tables' excluded."""
        return sum(part.parameters for part in self.parts)

    @property
    def flops_per_row_forward(self) -> int:
        """FLOPs of one row's forward pass."""
        return sum(part.flops_per_row_forward for part in self.parts)

    @property
    def flops_per_row_train(self) -> int:
        """FLOPs of one row's forward and backward pass."""
        return sum(part.flops_per_row_train for part in self.parts)

    def breakdown(self) -> dict[str, dict[str, int]]:
        """Part name -> its `parameters`, `flops_per_row_forward` and `flops_per_row_train`."""
        return {
            part.name: {
                "parameters": part.parameters,
                "flops_per_row_forward": part.flops_per_row_forward,
                "flops_per_row_train": part.flops_per_row_train,
            }
            for part in self.parts
        }


def total(parts: Iterable[Part]) -> DenseCost:
    """The cost of a model made of `parts`."""
    return DenseCost(tuple(parts))


def _part(name: str, *, parameters: int, products: int) -> Part:
    """A part that does `products` multiply-adds a row, both of whose factors get gradients."""
    return Part(name, parameters, 2 * products, 6 * products)


def tokenizer_part(*, group_dims: Sequence[int], group_tokens: Sequence[int], token_dim: int) -> Part:
    """Semantic-group tokenizer: sum over tokens of (w_g + 1) D parameters and 2 w_g D FLOPs."""
    width = sum(dim * tokens for dim, tokens in zip(group_dims, group_tokens, strict=True))
    parameters = (width + sum(group_tokens)) * token_dim
    return _part("tokenizer", parameters=parameters, products=width * token_dim)


def rankmixer_part(
    *, num_tokens: int, token_dim: int, num_blocks: int, hidden_dim: int, norm: Literal["post", "pre"] = "post"
) -> Part:
    """Backbone: L (T (2DF + F + D) + 4D) parameters, 2D more for pre-norm's last norm, and 4 L T D F FLOPs."""
    weights = 2 * token_dim * hidden_dim
    block = num_tokens * (weights + hidden_dim + token_dim) + 4 * token_dim
    final = 2 * token_dim if norm == "pre" else 0
    return _part("backbone", parameters=num_blocks * block + final, products=num_blocks * num_tokens * weights)


def target_attention_part(name: str, *, dim: int, length: int, hidden_dims: Sequence[int]) -> Part:
    """DIN pooling of `length` keys; its first layer, folded, does D F multiply-adds a key and D F a row."""
    dims = (*hidden_dims, 1)
    later = sum(i * o for i, o in pairwise(dims))
    parameters = 4 * dim * dims[0] + later + sum(dims)
    products = dim * dims[0] + length * (dim * dims[0] + later + dim)
    return _part(name, parameters=parameters, products=products)


def mean_pooling_part(name: str, *, dim: int, length: int) -> Part:
    """Mean pooling of `length` keys; its weights are constants, so that only the keys get gradients."""
    return Part(name, 0, 2 * length * dim, 4 * length * dim)


def heads_part(*, token_dim: int, num_tasks: int, hidden_dims: Sequence[int] = ()) -> Part:
    """Task heads, each with its own layers."""
    pairs = list(pairwise((token_dim, *hidden_dims, 1)))
    weights = num_tasks * sum(i * o for i, o in pairs)
    return _part("heads", parameters=weights + num_tasks * sum(o for _, o in pairs), products=weights)


_PEAK_TFLOPS: tuple[tuple[str, dict[str, float]], ...] = (
    # Vendors' sheets, dense (without 2:4 sparsity), fp32 without tensor cores. The first pattern found in the device's
    # name counts, so the narrower ones stand first. An SXM board has no suffix in its name.
    (r"GB200", {"bfloat16": 2500, "float16": 2500, "tf32": 1250, "float32": 80}),
    (r"B200", {"bfloat16": 2250, "float16": 2250, "tf32": 1100, "float32": 75}),
    (r"H200 NVL", {"bfloat16": 835.5, "float16": 835.5, "tf32": 417.5, "float32": 60}),
    (r"GH200|H200", {"bfloat16": 989.4, "float16": 989.4, "tf32": 494.7, "float32": 66.9}),
    (r"H[18]00 PCIe", {"bfloat16": 756, "float16": 756, "tf32": 378, "float32": 51}),
    (r"H100 NVL", {"bfloat16": 835.5, "float16": 835.5, "tf32": 417.5, "float32": 60}),
    (r"H[18]00", {"bfloat16": 989.4, "float16": 989.4, "tf32": 494.7, "float32": 66.9}),
    (r"H20", {"bfloat16": 148, "float16": 148, "tf32": 74, "float32": 44}),
    (r"A[18]00", {"bfloat16": 312, "float16": 312, "tf32": 156, "float32": 19.5}),
    (r"A40", {"bfloat16": 149.7, "float16": 149.7, "tf32": 74.8, "float32": 37.4}),
    (r"A30", {"bfloat16": 165, "float16": 165, "tf32": 82, "float32": 10.3}),
    (r"A10G", {"bfloat16": 70, "float16": 70, "tf32": 35, "float32": 31.5}),
    (r"A10", {"bfloat16": 125, "float16": 125, "tf32": 62.5, "float32": 31.2}),
    (r"L40S", {"bfloat16": 362, "float16": 362, "tf32": 183, "float32": 91.6}),
    (r"L40", {"bfloat16": 181, "float16": 181, "tf32": 90.5, "float32": 90.5}),
    (r"L4", {"bfloat16": 121, "float16": 121, "tf32": 60, "float32": 30.3}),
    (r"V100-SXM\d", {"float16": 125, "float32": 15.7}),
    (r"V100", {"float16": 112, "float32": 14}),
    (r"T4", {"float16": 65, "float32": 8.1}),
)

_DTYPES = {"bf16": "bfloat16", "fp16": "float16", "fp32": "float32"}


def peak_flops(device_name: str, dtype: str) -> float | None:
    """Dense peak of a GPU in FLOP/s.

    Args:
        device_name: as the driver reports it, e.g. "NVIDIA H100 80GB HBM3".
        dtype: "bfloat16", "float16", "tf32" or "float32", or "bf16", "fp16", "fp32".

    Returns:
        None for a device that the table does not know, or a dtype that its matrix units lack.

    Raises:
        ValueError: unknown dtype.
    """
    dtype = _DTYPES.get(dtype, dtype)
    if dtype not in (*_DTYPES.values(), "tf32"):
        raise ValueError(f"dtype {dtype!r} is unknown; use bfloat16, float16, tf32 or float32")
    for pattern, rates in _PEAK_TFLOPS:
        # Whole words, so that A10 is not found in A100.
        if re.search(rf"\b(?:{pattern})\b", device_name):
            return rates[dtype] * 1e12 if dtype in rates else None
    return None
