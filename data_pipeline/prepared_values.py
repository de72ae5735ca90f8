"""Raw values as prepared ones, and which of them cannot be prepared: keys, buckets, numbers."""

from collections.abc import Sequence
from typing import Literal

import numpy as np
import pyarrow as pa

from data_pipeline.hashing import read_ids
from data_pipeline.raw_values import floats
from rankmixer_dist.schema import Table

OUT_OF_RANGE, BEYOND_TABLE = "id_out_of_range", "id_beyond_table"
NOT_WHOLE, NOT_FINITE = "id_not_whole", "numeric_not_finite"


def id_keys(values: pa.Array, table: Table) -> tuple[np.ndarray, np.ndarray, dict[str, np.ndarray]]:
    """Key of each value, int64 [N]; which are missing, bool [N]; and by reason which values have no key."""
    ids = read_ids(values)
    keys = ids.bits.view(np.int64)
    if table.ids == "hash":
        return keys, ~ids.present, {NOT_WHOLE: ids.faulty}
    not_whole = ids.faulty | (ids.present & ~ids.integer)
    whole = ids.present & ~not_whole
    negative, beyond = whole & (keys < 0), whole & (keys >= table.rows - 1)
    return keys, ~ids.present, {NOT_WHOLE: not_whole, OUT_OF_RANGE: negative, BEYOND_TABLE: beyond}


def bucket_keys(values: np.ndarray, boundaries: Sequence[float]) -> pa.Array:
    """Index of each value's bucket, int64 [N] in [0, len(boundaries)], null for NaN."""
    buckets = np.searchsorted(np.asarray(boundaries, dtype=np.float64), values, side="right")
    return pa.array(buckets.astype(np.int64), mask=np.isnan(values))


def numbers(values: pa.Array, transform: Literal["none", "log1p"]) -> tuple[np.ndarray, dict[str, np.ndarray]]:
    """Each value, float32 [N], NaN where it is missing; and by reason which values are none."""
    wide = floats(values)
    if transform == "log1p":
        wide = np.log1p(np.maximum(wide, 0.0))
    with np.errstate(over="ignore"):
        narrow = wide.astype(np.float32)
    return narrow, {NOT_FINITE: np.isinf(narrow)}
