"""Numbers behind the plots: smoothing, thinning, ROC curves, reliability points."""

import math
from collections.abc import Iterable
from dataclasses import dataclass
from itertools import accumulate

import numpy as np
from numpy.typing import ArrayLike, NDArray

from rankmixer_dist.metrics import Calibration, ReliabilityBins
from rankmixer_dist.metrics.auc import exact_auc

MAX_ROC_POINTS = 400
MIN_ROWS_OF_EACH_CLASS = 10
NORMAL_QUANTILE_975 = 1.959963984540054


@dataclass(frozen=True)
class ROCCurve:
    """False and true positive rates [points], from (0, 0) to (1, 1)."""

    false_positive_rate: NDArray[np.float64]
    true_positive_rate: NDArray[np.float64]


@dataclass(frozen=True)
class ReliabilityPoints:
    """Predicted against observed rate [points], with the Wilson 95 % interval of the observed rate and the rows."""

    predicted: NDArray[np.float64]
    observed: NDArray[np.float64]
    observed_low: NDArray[np.float64]
    observed_high: NDArray[np.float64]
    rows: NDArray[np.int64]


@dataclass(frozen=True)
class PredictionCurves:
    """What one task's predictions are drawn from; None and NaN with a single class."""

    auc: float
    roc: ROCCurve | None
    reliability: ReliabilityPoints | None
    rows: int
    positives: int


def smoothed(values: NDArray[np.float64], half_life: float) -> NDArray[np.float64]:
    """Moving average [lines] that looks both ways, so that it does not trail behind a falling loss.

    Weighted mean of all values, weight 2**(-distance / half_life) with the distance in lines; NaN values carry no
    weight, and without a number every average is NaN.
    """
    decay = 0.5 ** (1 / half_life)
    known = np.isfinite(values)
    numbers = np.where(known, values, 0.0)
    totals = _decayed_sum(numbers, decay) + _decayed_sum(numbers[::-1], decay)[::-1] - numbers
    weights = _decayed_sum(known, decay) + _decayed_sum(known[::-1], decay)[::-1] - known
    averages = np.full(len(values), math.nan)
    return np.divide(totals, weights, out=averages, where=weights > 0)


def _decayed_sum(values: NDArray, decay: float) -> NDArray[np.float64]:
    """Recursive sum [lines]: s_i = decay * s_(i - 1) + value_i."""
    return np.fromiter(accumulate(values.tolist(), lambda total, value: decay * total + value), np.float64, len(values))


def thinned(length: int, max_points: int) -> NDArray[np.int64]:
    """At most `max_points` evenly spread indices of `length` points, first and last among them."""
    return np.unique(np.linspace(0, length - 1, min(length, max_points)).round().astype(np.int64))


def prediction_curves(batches: Iterable[tuple[ArrayLike, ArrayLike]]) -> PredictionCurves:
    """ROC and reliability of one task from batches of (scores [rows] in [0, 1], labels [rows] of 0 and 1).

    Raises:
        ValueError: scores or labels that `metrics.Calibration` refuses.
    """
    calibration = Calibration()
    score_batches, label_batches = [], []
    for scores, labels in batches:
        calibration.update(scores, labels)
        score_batches.append(np.asarray(scores))
        label_batches.append(np.asarray(labels) == 1)
    totals = calibration.compute()
    all_scores, all_labels = np.concatenate(score_batches), np.concatenate(label_batches)
    both_classes = 0 < totals.positives < totals.rows
    return PredictionCurves(
        auc=exact_auc(all_scores, all_labels).auc,
        roc=roc_curve(all_scores, all_labels) if both_classes else None,
        reliability=reliability_points(calibration.reliability()) if both_classes else None,
        rows=totals.rows,
        positives=totals.positives,
    )


def roc_curve(scores: NDArray[np.floating], labels: NDArray[np.bool_]) -> ROCCurve:
    """ROC over every distinct score, thinned to about 400 points evenly spread along the curve."""
    order = np.argsort(-scores)
    scores, labels = scores[order], labels[order]
    last_of_tie = np.append(np.flatnonzero(scores[1:] != scores[:-1]), len(scores) - 1)
    true_positives = np.cumsum(labels)[last_of_tie]
    false_positives = last_of_tie + 1 - true_positives
    true_positive_rate = np.concatenate(([0.0], true_positives / true_positives[-1]))
    false_positive_rate = np.concatenate(([0.0], false_positives / false_positives[-1]))
    # Both rates only grow, so their sum walks along the curve from 0 to 2.
    walked = true_positive_rate + false_positive_rate
    kept = np.unique(np.searchsorted(walked, np.linspace(0, 2, MAX_ROC_POINTS)).clip(max=len(walked) - 1))
    return ROCCurve(false_positive_rate[kept], true_positive_rate[kept])


def reliability_points(bins: ReliabilityBins) -> ReliabilityPoints:
    """Neighbouring bins joined until each point has ten rows of either class, so that every rate lies inside (0, 1)."""
    groups: list[list[int]] = [[]]
    for index in np.flatnonzero(bins.rows).tolist():
        groups[-1].append(index)
        positives = bins.positives[groups[-1]].sum()
        if min(positives, bins.rows[groups[-1]].sum() - positives) >= MIN_ROWS_OF_EACH_CLASS:
            groups.append([])
    remainder = groups.pop()
    if groups:
        groups[-1].extend(remainder)
    else:
        groups.append(remainder)
    rows = np.array([bins.rows[group].sum() for group in groups])
    positives = np.array([bins.positives[group].sum() for group in groups])
    predicted = np.array([np.average(bins.mean_score[group], weights=bins.rows[group]) for group in groups])
    observed = positives / rows
    z_squared = NORMAL_QUANTILE_975**2
    centre = (positives + z_squared / 2) / (rows + z_squared)
    half_width = np.sqrt(z_squared * (observed * (1 - observed) * rows + z_squared / 4)) / (rows + z_squared)
    return ReliabilityPoints(predicted, observed, centre - half_width, centre + half_width, rows)
