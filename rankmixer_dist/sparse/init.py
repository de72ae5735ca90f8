"""Starting weights of a table as a pure function of (seed, table, row, column), the same under every sharding."""

import hashlib

import torch
from torch import Tensor

_GOLDEN, _MIX_1, _MIX_2 = (c - (1 << 64) for c in (0x9E3779B97F4A7C15, 0xBF58476D1CE4E5B9, 0x94D049BB133111EB))
_BLOCK_ELEMENTS = 1 << 20
"""Filled at a time; the intermediate values of so many take 46 MB."""


@torch.no_grad()
def fill_uniform_(weight_RD: Tensor, *, scale: float, seed: int, table: str, first_row: int = 0) -> None:
    """Fills a block of a table's rows with uniform values in [-scale, scale).

    A counter-based generator (SplitMix64 of the element's place in the whole table, Steele et al. 2014), so a row
    starts with the same values on whichever rank it lies, and a row added later needs no stream to be replayed.

    Args:
        weight_RD: float [rows, dim], rows `first_row`.. of table `table`.
    """
    digest = hashlib.blake2b(f"{seed}/{table}".encode(), digest_size=8).digest()
    key = int.from_bytes(digest, "little", signed=True)
    rows, dim = weight_RD.shape
    columns = torch.arange(dim, dtype=torch.int64, device=weight_RD.device)
    block_rows = max(1, _BLOCK_ELEMENTS // dim)
    for start in range(0, rows, block_rows):
        stop = min(rows, start + block_rows)
        places = torch.arange(first_row + start, first_row + stop, dtype=torch.int64, device=weight_RD.device)
        bits = _split_mix(places[:, None] * dim + columns, key)
        unit = _shift_right(bits, 40).to(torch.float32) * 2.0**-24
        weight_RD[start:stop].copy_((2 * unit - 1) * scale)


def _split_mix(counter: Tensor, key: int) -> Tensor:
    z = key + (counter + 1) * _GOLDEN
    z = (z ^ _shift_right(z, 30)) * _MIX_1
    z = (z ^ _shift_right(z, 27)) * _MIX_2
    return z ^ _shift_right(z, 31)


def _shift_right(value: Tensor, bits: int) -> Tensor:
    """Logical shift of int64: torch's own repeats the sign."""
    return (value >> bits) & ((1 << (64 - bits)) - 1)
