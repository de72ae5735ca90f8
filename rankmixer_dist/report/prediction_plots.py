"""ROC and reliability of one task, drawn from its predictions."""

import numpy as np
from matplotlib.axes import Axes
from matplotlib.ticker import FuncFormatter

from rankmixer_dist.report.curves import ReliabilityPoints, ROCCurve
from rankmixer_dist.report.svg import INK, MUTED, NUM_SERIES, SERIES, SURFACE, Plot, render


def roc_plot(curve: ROCCurve, *, task: str, auc: float, color_index: int) -> Plot:
    """ROC curve of one task with its AUC written into the empty corner."""
    color = SERIES[color_index % NUM_SERIES]

    def draw(axes: Axes) -> None:
        axes.plot([0, 1], [0, 1], color=MUTED, linewidth=1, linestyle=(0, (4, 3)))
        axes.fill_between(curve.false_positive_rate, curve.true_positive_rate, color=color, alpha=0.10, linewidth=0)
        axes.plot(curve.false_positive_rate, curve.true_positive_rate, color=color)
        axes.text(0.97, 0.06, f"AUC {auc:.4f}", ha="right", color=INK, fontsize=13, fontweight="bold")
        axes.set(xlim=(0, 1), ylim=(0, 1.01), xlabel="false positive rate", ylabel="true positive rate")
        _format_unit_axes(axes)

    label = f"ROC curve of {task}, AUC {auc:.4f}"
    return Plot(title="ROC", svg=render(draw, width=270, height=250, label=label, prefix=f"roc-{color_index}"))


def reliability_plot(points: ReliabilityPoints, *, task: str, color_index: int) -> Plot:
    """Predicted against observed rate of one task on log-odds axes, each with its 95 % interval."""
    color = SERIES[color_index % NUM_SERIES]
    low = max(1e-6, 0.7 * min(points.predicted.min(), points.observed_low.min()))
    high = 1 - max(1e-6, 0.7 * (1 - max(points.predicted.max(), points.observed_high.max())))
    ticks = [tick for tick in (1e-5, 1e-4, 1e-3, 0.01, 0.1, 0.5, 0.9, 0.99, 0.999) if low <= tick <= high]

    def draw(axes: Axes) -> None:
        axes.set_xscale("logit")
        axes.set_yscale("logit")
        axes.plot([low, high], [low, high], color=MUTED, linewidth=1, linestyle=(0, (4, 3)))
        axes.vlines(points.predicted, points.observed_low, points.observed_high, color=color, alpha=0.45, linewidth=2)
        areas = 12 + 90 * np.sqrt(points.rows / points.rows.sum())
        axes.plot(points.predicted, points.observed, color=color, alpha=0.5, linewidth=1)
        axes.scatter(
            points.predicted, points.observed, s=areas, color=color, edgecolors=SURFACE, linewidths=1, zorder=3
        )
        axes.set(xlim=(low, high), ylim=(low, high), xlabel="predicted", ylabel="observed")
        for axis in (axes.xaxis, axes.yaxis):
            axis.set_major_formatter(FuncFormatter(lambda value, _: f"{100 * value:g}%"))
            axis.set_ticks(ticks)
            axis.set_ticks([], minor=True)

    label = f"reliability of {task}"
    svg = render(draw, width=270, height=250, label=label, prefix=f"reliability-{color_index}")
    return Plot(title="Calibration", svg=svg)


def _format_unit_axes(axes: Axes) -> None:
    for axis in (axes.xaxis, axes.yaxis):
        axis.set_ticks([0, 0.25, 0.5, 0.75, 1])
        axis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
