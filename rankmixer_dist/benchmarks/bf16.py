"""Whether this CPU multiplies bf16 numbers in units of its own."""

import functools

import torch

from rankmixer_dist.benchmarks.figure import interleaved

_SIZE = 512


@functools.cache
def is_emulated() -> bool:
    """Whether a small bf16 product is far slower than an fp32 one; torch then computes number by number.

    torch's own answers ask for features of the processor, and have said yes on one without.
    """
    factors = {dtype: torch.randn(_SIZE, _SIZE).to(dtype) for dtype in (torch.float32, torch.bfloat16)}
    seconds = interleaved({str(d): functools.partial(torch.mm, x, x) for d, x in factors.items()}, repeats=3)
    return seconds["torch.bfloat16"] > 4 * seconds["torch.float32"]
