"""The figures by column of eval.json, and their picture."""

from typing import Any

import numpy as np
from matplotlib.axes import Axes

from rankmixer_dist.report import formats
from rankmixer_dist.report.contract import Count, from_file
from rankmixer_dist.report.svg import NUM_SERIES, SERIES, SURFACE, LegendEntry, Plot, css_color, render

MAX_DRAWN = 30
"""Values of a column that the picture has room for; the table holds all."""


@from_file
class SliceFigures:
    """One task over the rows of one value; None where a figure is undefined."""

    auc: float | None
    auc_low: float | None
    auc_high: float | None
    uauc: float | None
    users_scored: Count


@from_file
class SlicedValue:
    """One value of a column: its rows, and the figures of each task that has a label there."""

    name: str
    rows: Count
    tasks: dict[str, SliceFigures]


@from_file
class SlicedColumn:
    """The values of a column, in their order, and what they mean."""

    name: str
    legend: str
    values: list[SlicedValue]

    @property
    def rows(self) -> int:
        """Of all values."""
        return sum(value.rows for value in self.values)


def read_slices(evaluation: dict[str, Any]) -> list[SlicedColumn]:
    """From the content of eval.json; files from before there were slices have none."""
    legends = evaluation.get("slice_legends", {})
    return [
        SlicedColumn(column, legends.get(column, ""), [_value(name, each) for name, each in values.items()])
        for column, values in evaluation.get("slices", {}).items()
    ]


def _value(name: str, value: dict[str, Any]) -> SlicedValue:
    figures = {}
    for task, of_task in value["tasks"].items():
        low, high = of_task["auc_ci95"]
        figures[task] = SliceFigures(of_task["auc"], low, high, of_task["uauc"], of_task["users_scored"])
    return SlicedValue(name, value["rows"], figures)


def slices_plot(column: SlicedColumn, tasks: list[str], *, prefix: str) -> Plot | None:
    """AUC of every task for each value, with its 95 % interval; of many values, those with the most rows."""
    by_rows = sorted(column.values, key=lambda value: value.rows, reverse=True)[:MAX_DRAWN]
    drawn = [value for value in column.values if value in by_rows]
    if not any(figures.auc is not None for value in drawn for figures in value.tasks.values()):
        return None
    spread = np.linspace(-0.26, 0.26, len(tasks)) if len(tasks) > 1 else [0.0]

    def draw(axes: Axes) -> None:
        for index, (task, offset) in enumerate(zip(tasks, spread, strict=True)):
            color = SERIES[index % NUM_SERIES]
            for place, value in enumerate(drawn):
                figures = value.tasks.get(task)
                if figures is None or figures.auc is None:
                    continue
                if figures.auc_low is not None and figures.auc_high is not None:
                    ends = [figures.auc_low, figures.auc_high]
                    axes.plot(ends, [place + offset] * 2, color=color, alpha=0.45)
                axes.scatter(figures.auc, place + offset, s=34, color=color, edgecolors=SURFACE, linewidths=1, zorder=3)
        axes.set_yticks(range(len(drawn)), [value.name for value in drawn])
        axes.set(ylim=(len(drawn) - 0.5, -0.5), xlabel="AUC")
        axes.grid(visible=False, axis="y")

    hidden = len(column.values) - len(drawn)
    return Plot(
        title=f"By {column.name}",
        svg=render(
            draw,
            width=560,
            height=64 + len(drawn) * (14 + 9 * len(tasks)),
            label=f"AUC by {column.name}",
            prefix=prefix,
        ),
        legend=tuple(LegendEntry(css_color(SERIES[index % NUM_SERIES]), task) for index, task in enumerate(tasks)),
        note=f"The {MAX_DRAWN} values with the most rows; {formats.count(hidden)} more in the table." if hidden else "",
    )
