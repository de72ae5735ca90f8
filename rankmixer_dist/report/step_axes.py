"""Axes whose x is the step: how a figure of the training log becomes a line on them."""

from collections.abc import Sequence

import numpy as np
from matplotlib.axes import Axes
from matplotlib.ticker import FuncFormatter, MaxNLocator
from numpy.typing import NDArray

from rankmixer_dist.report import formats
from rankmixer_dist.report.curves import smoothed, thinned
from rankmixer_dist.report.svg import MUTED
from rankmixer_dist.report.training_log import TrainingLog

MAX_LINE_POINTS = 500


def draw_line(axes: Axes, log: TrainingLog, values: NDArray[np.float64], color: str) -> None:
    """A figure [lines] by step: as logged faint, its moving average strong."""
    steps = log.columns["step"]
    kept = thinned(len(steps), MAX_LINE_POINTS)
    axes.plot(steps[kept], values[kept], color=color, alpha=0.25, linewidth=1)
    axes.plot(steps[kept], smoothed(values, half_life(log))[kept], color=color)


def half_life(log: TrainingLog) -> float:
    """Of the moving averages, in lines: a hundredth of the log."""
    return max(1.0, 0.01 * len(log.columns["step"]))


def last_average(log: TrainingLog, values: NDArray[np.float64]) -> float | None:
    """Where the moving average of a figure [lines] ends; None without a number."""
    last = float(smoothed(values, half_life(log))[-1])
    return last if np.isfinite(last) else None


def limit_to_bulk(axes: Axes, values: NDArray[np.float64]) -> None:
    """The few first or stray values [lines] may leave the picture, so that they do not flatten the rest."""
    if np.isfinite(values).any():
        low, high = np.nanpercentile(values, [0.2, 99])
        margin = 0.06 * (high - low) or 0.1
        axes.set_ylim(low - margin, high + margin)
    axes.yaxis.set_major_locator(MaxNLocator(4))


def finish_step_axes(rows: Sequence[Axes], log: TrainingLog, *, max_ticks: int = 6) -> None:
    """The step below rows of axes that share it, and where epochs begin."""
    steps, epochs = log.columns["step"], log.columns["epoch"]
    for axes in rows:
        axes.grid(visible=False, axis="x")
        for boundary in steps[1:][np.diff(np.floor(epochs)) > 0]:
            axes.axvline(boundary, color=MUTED, linewidth=1, linestyle=(0, (1, 3)))
    bottom = rows[-1]
    bottom.set_xlabel("step")
    bottom.set_xlim(steps[0], steps[-1] if steps[-1] > steps[0] else steps[0] + 1)
    bottom.xaxis.set_major_locator(MaxNLocator(max_ticks, integer=True))
    bottom.xaxis.set_major_formatter(FuncFormatter(lambda value, _: formats.scaled(value)))
