"""Weights as whole numbers of one unit, so that weighted rows are counted as rows are: by integers alone."""

import numpy as np
from numpy.typing import NDArray

from rankmixer_dist.errors import UserError
from rankmixer_dist.metrics.keys import key_order, score_keys

UNITS_PER_ONE = 1 << 30
"""Weights are rounded to multiples of 2**-30: what a float32 from 2**-7 on is anyway."""
MAX_WEIGHT = 2.0**20
TOO_LARGE = "weights: their sum is 2**31 or more; divide all weights by one number"
MOST_UNITS = 1 << 61
"""The units of rows that are counted together stay below: twice as many fit 64 bits."""


def weight_units(weights: NDArray[np.float64] | None) -> NDArray[np.int64] | None:
    """Checked weights [rows] in units of 2**-30, at most 2**50; None for rows that count 1.

    Raises:
        UserError: their sum is too large to be counted.
    """
    if weights is None:
        return None
    if float(weights.sum()) * UNITS_PER_ONE >= MOST_UNITS:
        raise UserError(TOO_LARGE)
    return (weights * UNITS_PER_ONE).astype(np.int64)


def sorted_rows(keys: NDArray, units: NDArray[np.int64] | None) -> tuple[NDArray, NDArray[np.int64] | None]:
    """Rows by ascending key: scores, or keys that are ordered as they are, [rows] and their units [rows]."""
    if units is None:
        return np.sort(keys), None
    order = key_order((score_keys(keys) if keys.dtype.kind == "f" else keys).astype(np.uint64))
    return keys[order], units[order]


def units_before(units: NDArray[np.int64] | None, num_rows: int) -> NDArray[np.int64]:
    """[rows + 1] what the rows before each place count, and all rows."""
    if units is None:
        return np.arange(num_rows + 1)
    return np.concatenate(([0], np.cumsum(units)))
