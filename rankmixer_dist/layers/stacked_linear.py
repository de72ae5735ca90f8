"""Independent linear maps of equal shape, held in one stacked weight and run as one batched GEMM."""

import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar

import torch
from torch import Tensor, nn

_part: ContextVar[tuple[int, int]] = ContextVar("part", default=(0, 1))


@contextmanager
def keeping_part(part: int, parts: int) -> Iterator[None]:
    """Stacked maps that are built inside keep their values in the `part`-th of `parts` equal runs of slices alone.

    The others are drawn, so that all that comes after is drawn alike, but not kept: memory that was never written to
    costs none. So a rank builds what is too large for it, and then has to cut the layers down to its part of them.
    """
    token = _part.set((part, parts))
    try:
        yield
    finally:
        _part.reset(token)


class StackedLinear(nn.Module):
    """y_n = x_n W_n + b_n for n = 1..N, each slice initialised exactly like its own `nn.Linear`.

    `weight`: [N, in, out], `bias`: [N, out] or None. Both start as U(-1/sqrt(fan_in), 1/sqrt(fan_in)) per slice, which
    is kaiming_uniform(a=sqrt(5)) on the 2-D slice. (`nn.init` rules applied to the 3-D tensor would count `out` as a
    receptive field and start far too small.)

    Args:
        count: N, the number of maps.
        in_dim: width of every input.
        out_dim: width of every output.
        fan_in: true input width of each slice where inputs are padded to `in_dim`; `in_dim` everywhere by default.
        bias: whether there is a b.
        init_scale: factor on both bounds, for layers that are to start small.

    Raises:
        ValueError: a size below 1, a negative `init_scale`, or `fan_in` not one value in 1..in_dim per slice.
    """

    def __init__(
        self,
        *,
        count: int,
        in_dim: int,
        out_dim: int,
        fan_in: Sequence[int] | None = None,
        bias: bool = True,
        init_scale: float = 1.0,
    ) -> None:
        super().__init__()
        if min(count, in_dim, out_dim) < 1:
            raise ValueError(f"count {count}, in_dim {in_dim} and out_dim {out_dim} must all be at least 1")
        fan_in = (in_dim,) * count if fan_in is None else tuple(fan_in)
        if len(fan_in) != count or not all(1 <= width <= in_dim for width in fan_in):
            raise ValueError(f"fan_in needs {count} values in 1..{in_dim}, one per slice, not {list(fan_in)}")
        if not 0 <= init_scale < math.inf:
            raise ValueError(f"init_scale {init_scale} must be a number of at least 0")
        self.count, self.in_dim, self.out_dim, self.fan_in = count, in_dim, out_dim, fan_in
        self.init_scale = init_scale
        self.weight = nn.Parameter(torch.empty(count, in_dim, out_dim))
        if bias:
            self.bias = nn.Parameter(torch.empty(count, out_dim))
        else:
            self.register_parameter("bias", None)
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Draws every slice anew from its own fan-in, and keeps all of them, or what `keeping_part` says."""
        part, parts = _part.get()
        kept = range(part * self.count // parts, (part + 1) * self.count // parts)
        aside = torch.empty_like(self.weight[0]) if len(kept) < self.count else None
        with torch.no_grad():
            for n, width in enumerate(self.fan_in):
                bound = self.init_scale / math.sqrt(width)
                slice_IO = self.weight[n] if aside is None or n in kept else aside
                slice_IO.uniform_(-bound, bound)
                if self.bias is not None:
                    self.bias[n].uniform_(-bound, bound)

    def forward(self, x_NBI: Tensor) -> Tensor:
        """[N, B, in] -> [N, B, out]; any strides, the result is contiguous."""
        if self.bias is None:
            return torch.bmm(x_NBI, self.weight)  # type: ignore[unreachable]  # registered as None, which mypy misses
        return torch.baddbmm(self.bias.unsqueeze(1), x_NBI, self.weight)

    def extra_repr(self) -> str:
        return f"count={self.count}, in_dim={self.in_dim}, out_dim={self.out_dim}, bias={self.bias is not None}"
