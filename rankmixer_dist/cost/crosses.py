"""Backbones that cross features: DLRM-MLP, DCN-V2, RDCN, MoE, DHEN and Wukong.

Products without weights (dot products, attention, gates times experts) count as well, since both factors get
gradients. W stands for T D, the width of the flattened tokens.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Literal

from rankmixer_dist.cost.part import Part, part_of


@dataclass(frozen=True)
class _Size:
    """Parameters, and multiply-adds a row."""

    parameters: int
    products: int

    def __add__(self, other: "_Size") -> "_Size":
        return _Size(self.parameters + other.parameters, self.products + other.products)

    def __mul__(self, count: int) -> "_Size":
        return _Size(self.parameters * count, self.products * count)

    def part(self) -> Part:
        return part_of("backbone", parameters=self.parameters, products=self.products)


_NOTHING = _Size(0, 0)


def _linear(in_dim: int, out_dim: int, *, bias: bool = True) -> _Size:
    return _Size(in_dim * out_dim + (out_dim if bias else 0), in_dim * out_dim)


def _mlp(*dims: int) -> _Size:
    return sum((_linear(i, o) for i, o in pairwise(dims)), _NOTHING)


def _token_linear(in_tokens: int, out_tokens: int, token_dim: int) -> _Size:
    return _Size(in_tokens * out_tokens, in_tokens * out_tokens * token_dim)


def _norm(width: int) -> _Size:
    return _Size(2 * width, 0)


def _cross(width: int, rank: int | None) -> _Size:
    return _linear(width, width) if rank is None else _linear(width, rank, bias=False) + _linear(rank, width)


def dlrm_mlp_part(*, num_tokens: int, token_dim: int, hidden_dims: Sequence[int]) -> Part:
    """DLRM-MLP: sum of (in + 1) out parameters over the layers."""
    return _mlp(num_tokens * token_dim, *hidden_dims).part()


def dcn_v2_part(
    *,
    num_tokens: int,
    token_dim: int,
    num_layers: int,
    rank: int | None,
    num_experts: int,
    hidden_dims: Sequence[int],
) -> Part:
    """DCN-V2, in parallel or stacked: L (W^2 + W), L (2 W r + W) or L (E (2 W r + r^2 + W) + W), and the MLP."""
    width = num_tokens * token_dim
    layer = _cross(width, rank)
    if rank is not None and num_experts > 1:
        experts = _linear(width, rank, bias=False) + _linear(rank, rank, bias=False) + _linear(rank, width, bias=False)
        layer = experts * num_experts + _linear(width, num_experts, bias=False) + _Size(width, 0)
    return (layer * num_layers + _mlp(width, *hidden_dims)).part()


def rdcn_part(
    *,
    num_tokens: int,
    token_dim: int,
    num_layers: int,
    rank: int,
    slot_dim: int,
    plain_cross: bool,
    hidden_dims: Sequence[int],
) -> Part:
    """RDCN: L (4 W r + W) with attention, which adds 2 r^2 / S multiply-adds, L (2 W r + W) without, and the MLP."""
    width = num_tokens * token_dim
    attention = _Size(0, 2 * rank * rank // slot_dim)
    layer = _linear(width, 3 * rank, bias=False) + attention + _linear(rank, width)
    if plain_cross:
        layer += _cross(width, rank)
    return (layer * num_layers + _mlp(width, *hidden_dims)).part()


def moe_part(*, num_tokens: int, token_dim: int, num_experts: int, num_gates: int, hidden_dims: Sequence[int]) -> Part:
    """MMoE: E MLPs, K gates of W E weights, and K E times the experts' last width multiply-adds to mix them."""
    width = num_tokens * token_dim
    gate = _linear(width, num_experts, bias=False) + _Size(0, num_experts * hidden_dims[-1])
    return (_mlp(width, *hidden_dims) * num_experts + gate * num_gates).part()


def wukong_part(
    *,
    num_tokens: int,
    token_dim: int,
    num_layers: int,
    num_fm: int,
    num_linear: int,
    rank: int,
    fm_hidden_dims: Sequence[int],
    hidden_dims: Sequence[int],
) -> Part:
    """Wukong; an FMB on T tokens does 2 T D k multiply-adds for X (X' Y) before its MLP of T k inputs."""
    out_tokens = num_fm + num_linear
    size = _mlp(out_tokens * token_dim, *hidden_dims)
    for in_tokens in (num_tokens, *(out_tokens for _ in range(num_layers - 1))):
        size += _token_linear(in_tokens, rank, token_dim) + _Size(0, in_tokens * token_dim * rank)
        size += _norm(in_tokens * rank) + _mlp(in_tokens * rank, *fm_hidden_dims, num_fm * token_dim)
        size += _token_linear(in_tokens, num_linear, token_dim) + _norm(token_dim)
        if in_tokens != out_tokens:
            size += _token_linear(in_tokens, out_tokens, token_dim)
    return size.part()


def dhen_part(
    *,
    num_tokens: int,
    token_dim: int,
    num_layers: int,
    interactions: Sequence[Literal["dot", "cross", "attention", "linear"]],
    ensemble: Literal["concat", "sum"],
    tokens_per_module: int,
    ffn_dim: int,
    rank: int,
    dot_hidden_dims: Sequence[int],
    hidden_dims: Sequence[int],
) -> Part:
    """DHEN: the sum over layers and their modules, shortcuts where the number of tokens changes, and the MLP."""
    out_tokens = tokens_per_module * (len(interactions) if ensemble == "concat" else 1)
    size = _mlp(out_tokens * token_dim, *hidden_dims)
    for in_tokens in (num_tokens, *(out_tokens for _ in range(num_layers - 1))):
        compress = _token_linear(in_tokens, tokens_per_module, token_dim)
        squares = in_tokens * in_tokens * token_dim
        encoder = _mlp(token_dim, 3 * token_dim) + _linear(token_dim, token_dim) + _mlp(token_dim, ffn_dim, token_dim)
        pairs = in_tokens * (in_tokens + 1) // 2
        sizes = {
            "dot": _Size(0, squares) + _mlp(pairs, *dot_hidden_dims, tokens_per_module * token_dim),
            "cross": _cross(in_tokens * token_dim, rank) + compress,
            # The encoder's weights serve every token.
            "attention": _Size(encoder.parameters, encoder.products * in_tokens + 2 * squares)
            + _norm(token_dim) * 2
            + compress,
            "linear": compress,
        }
        size += sum((sizes[kind] for kind in interactions), _norm(token_dim))
        if in_tokens != out_tokens:
            size += _token_linear(in_tokens, out_tokens, token_dim)
    return size.part()
