"""Values of raw columns as the numbers, moments and labels that they mean, whatever type their file holds them in.

Nothing is cast to the type of another file: each file's own type says how its values are read.
"""

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from data_pipeline import kinds
from data_pipeline.hashing import read_ids

_LOWEST, _HIGHEST = np.iinfo(np.int64).min, np.iinfo(np.int64).max


def floats(values: pa.Array) -> np.ndarray:
    """float64 [N] of numbers, rounded to the nearest where they hold more digits; nulls as NaN."""
    values = kinds.decoded(values)
    # Not safe: integers beyond 2^53 are rounded instead of refused.
    wide = values.cast(pa.float64(), safe=False)
    return pc.fill_null(wide, float("nan")).to_numpy(zero_copy_only=False)


def labels(values: pa.Array) -> tuple[np.ndarray, np.ndarray]:
    """Labels as float32 [N], NaN where null or NaN, and which are known but neither 0 nor 1 in their own type."""
    ids = read_ids(values)
    faulty = ids.present & (ids.faulty | (ids.bits > 1))
    return np.where(ids.present & ~faulty, ids.bits.astype(np.float32), np.float32(np.nan)), faulty


def milliseconds(values: pa.Array) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Moments as Unix ms.

    A number is Unix ms. A timestamp has the unit of its type, a date its first moment; one without a time zone is UTC.

    Returns:
        int64 [N], rounded down to whole ms; which are neither null nor NaN, bool [N]; and which of these are no whole
        number or lie beyond what 64 bits of ms can hold, bool [N].
    """
    values = kinds.decoded(values)
    if not kinds.is_time(values.type):
        ids = read_ids(values)
        beyond = pa.types.is_unsigned_integer(values.type) & (ids.bits > np.uint64(_HIGHEST))
        return ids.bits.view(np.int64), ids.present, ids.faulty | (ids.present & beyond)
    present = values.is_valid().to_numpy(zero_copy_only=False)
    if pa.types.is_date32(values.type):
        values = values.view(pa.int32())
        up, down = 86_400_000, 1
    else:
        per_second = 1_000 if pa.types.is_date64(values.type) else kinds.PER_SECOND[values.type.unit]
        up, down = max(1, 1_000 // per_second), max(1, per_second // 1_000)
        values = values.view(pa.int64())
    raw = pc.fill_null(values.cast(pa.int64()), 0).to_numpy(zero_copy_only=False)
    faulty = present & ((raw > _HIGHEST // up) | (raw < -(_HIGHEST // up)))
    return np.where(faulty, 0, raw) // down * up, present, faulty
