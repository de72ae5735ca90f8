"""Checks of the columns of scored rows."""

import numpy as np
from numpy.typing import ArrayLike, NDArray

from rankmixer_dist.metrics.weights import MAX_WEIGHT, UNITS_PER_ONE

WEIGHTS_ARE = "0 or between 2**-30 and 2**20"
"""What `check_weights` takes. A weight is rounded to a multiple of 2**-30, so that sums of them are integers."""


def check_scores(scores: ArrayLike, name: str = "scores") -> NDArray[np.floating]:
    """Scores [rows] as float32, or as float64 where they came as float64: never a lossy cast.

    Raises:
        ValueError: not one-dimensional, not floating point, or NaN or infinity among them.
    """
    column = _one_dimensional(name, scores)
    if column.dtype.kind != "f" or column.dtype.itemsize > 8:
        raise ValueError(f"{name}: expected float32 or float64, got {column.dtype}")
    if column.dtype.itemsize < 4:
        column = column.astype(np.float32)
    _refuse(name, column, ~np.isfinite(column), "not finite")
    return column


def check_probabilities(scores: ArrayLike) -> NDArray[np.floating]:
    """As `check_scores`, and every score within [0, 1].

    Raises:
        ValueError: as `check_scores`, or a score outside [0, 1].
    """
    column = check_scores(scores)
    _refuse("scores", column, (column < 0) | (column > 1), "outside [0, 1]")
    return column


def check_labels(labels: ArrayLike) -> NDArray[np.bool_]:
    """Labels [rows] as bool; any dtype is taken as long as the values are 0 and 1.

    Raises:
        ValueError: not one-dimensional, or a value other than 0 and 1 (NaN included).
    """
    column = _one_dimensional("labels", labels)
    if column.dtype == np.bool_:
        return column
    positive = column == 1
    _refuse("labels", column, ~(positive | (column == 0)), "neither 0 nor 1")
    return positive


def check_user_ids(user_ids: ArrayLike) -> NDArray[np.int64]:
    """User ids [rows] as int64.

    Raises:
        ValueError: not one-dimensional, or a dtype that int64 cannot hold in full (uint64, floats).
    """
    column = _one_dimensional("user_ids", user_ids)
    if column.dtype.kind not in "iu" or not np.can_cast(column.dtype, np.int64):
        raise ValueError(f"user_ids: expected int64, got {column.dtype}")
    return column.astype(np.int64, copy=False)


def check_weights(weights: ArrayLike) -> NDArray[np.float64]:
    """Weights [rows], rounded to multiples of 2**-30, as float64; integers and floats are taken.

    Raises:
        ValueError: not one-dimensional, no numbers, or one that is neither 0 nor between 2**-30 and 2**20.
    """
    column = _one_dimensional("weights", weights)
    if column.dtype.kind not in "iuf" or column.dtype.itemsize > 8:
        raise ValueError(f"weights: expected numbers of at most 64 bits, got {column.dtype}")
    column = column.astype(np.float64, copy=False)
    _refuse("weights", column, ~is_weight(column), f"not {WEIGHTS_ARE}")
    # Minus zero would show a sign bit to the exact sums.
    return np.rint(column * UNITS_PER_ONE) / UNITS_PER_ONE + 0.0


def is_weight(values: NDArray[np.float64]) -> NDArray[np.bool_]:
    """Whether each value [rows] can be a weight."""
    return (values == 0) | ((values >= 1 / UNITS_PER_ONE) & (values <= MAX_WEIGHT))


def check_same_length(**columns: NDArray) -> None:
    """Refuse columns of different lengths.

    Raises:
        ValueError: naming the length of each column.
    """
    if len({len(column) for column in columns.values()}) > 1:
        lengths = ", ".join(f"{name} {len(column)}" for name, column in columns.items())
        raise ValueError(f"columns differ in length: {lengths}")


def _one_dimensional(name: str, values: ArrayLike) -> NDArray:
    column = np.asarray(values)
    if column.ndim != 1:
        raise ValueError(f"{name}: expected one dimension, got shape {column.shape}")
    return column


def _refuse(name: str, column: NDArray, bad: NDArray[np.bool_], what: str) -> None:
    count = int(np.count_nonzero(bad))
    if count:
        first = int(np.argmax(bad))
        raise ValueError(
            f"{name}: {count} of {len(column)} values are {what}, first at index {first} ({column[first]})"
        )
