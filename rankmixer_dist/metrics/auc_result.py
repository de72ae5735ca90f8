"""What an AUC comes with: its sampling error and the interval of 95 %."""

import math
from dataclasses import dataclass

NORMAL_QUANTILE_975 = 1.959963984540054


@dataclass(frozen=True)
class AUCResult:
    """AUC and its sampling error; what is undefined is NaN.

    Attributes:
        auc: P(score of a positive > score of a negative) + P(equal) / 2; NaN with a single class.
        variance: DeLong variance of `auc`; NaN with fewer than two rows of either class.
        ci95_low, ci95_high: auc -+ 1.96 standard errors, cut at 0 and 1.
        positives, negatives: rows of each class.
    """

    auc: float
    variance: float
    ci95_low: float
    ci95_high: float
    positives: int
    negatives: int


def with_interval(auc: float, variance: float, positives: int, negatives: int) -> AUCResult:
    """The result with the interval that follows from its variance."""
    half_width = NORMAL_QUANTILE_975 * math.sqrt(variance)
    return AUCResult(
        auc=auc,
        variance=variance,
        ci95_low=max(0.0, auc - half_width),
        ci95_high=min(1.0, auc + half_width),
        positives=positives,
        negatives=negatives,
    )
