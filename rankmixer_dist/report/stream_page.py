"""The page of a streaming evaluation: figures of each window of time, written again while it goes on."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.dates import AutoDateLocator, ConciseDateFormatter
from matplotlib.ticker import MaxNLocator

from rankmixer_dist.metrics import mean_over_windows
from rankmixer_dist.metrics.windows import iso
from rankmixer_dist.report import formats
from rankmixer_dist.report.svg import NUM_SERIES, SERIES, LegendEntry, Plot, css_color, render
from rankmixer_dist.report.templates import page_template, write_page

TEMPLATE = "stream.html.jinja"
PAGE_NAME = "stream.html"
METRICS = {"auc": "AUC", "uauc": "UAUC"}


@dataclass(frozen=True)
class WindowView:
    """A window as the page shows it: `state` closed, open or waiting; `tasks` of its newest line, empty before."""

    start_ms: int
    end_ms: int
    state: str
    rows: int
    scored_rows: int
    shards: int
    duplicates: int | None
    revision: int | None
    step: int | None
    trained_until: int | None
    reason: str | None
    tasks: Mapping[str, Any]


@dataclass(frozen=True)
class StreamView:
    """All that the page shows; `refresh_s` None for a page that no longer changes."""

    name: str
    windows: Sequence[WindowView]
    problems: Sequence[tuple[str, str]]
    notes: Sequence[str]
    shards: int
    refresh_s: float | None


def render_stream(run_dir: Path, view: StreamView) -> Path:
    """Writes `stream.html`, which is the old one or the new one at any time, and returns its path."""
    scored = [window for window in view.windows if window.tasks]
    tasks = list(dict.fromkeys(task for window in scored for task in window.tasks))
    filters = {"metric": formats.metric, "count": formats.count, "time": _time}
    page = page_template(TEMPLATE, filters).render(
        view=view,
        tasks=tasks,
        metrics=METRICS,
        means=mean_over_windows(window.tasks for window in scored),
        scored=len(scored),
        plots=[_plot(scored, tasks, metric) for metric in METRICS] if scored else [],
        written=datetime.now(UTC).strftime("%Y-%m-%d %H:%M:%S UTC"),
    )
    return write_page(run_dir / PAGE_NAME, page)


def _plot(windows: Sequence[WindowView], tasks: Sequence[str], metric: str) -> Plot:
    """A metric of every task, a point a window at its start."""
    starts = np.array([window.start_ms for window in windows], dtype="datetime64[ms]")
    values = {task: np.array([_number(window.tasks.get(task, {}).get(metric)) for window in windows]) for task in tasks}

    def draw(axes: Axes) -> None:
        for index, task in enumerate(tasks):
            axes.plot(starts, values[task], color=SERIES[index % NUM_SERIES], marker="o", markersize=4)
        locator = AutoDateLocator(minticks=2, maxticks=7)
        axes.xaxis.set_major_locator(locator)
        axes.xaxis.set_major_formatter(ConciseDateFormatter(locator))
        axes.yaxis.set_major_locator(MaxNLocator(4))
        axes.grid(visible=False, axis="x")

    means = mean_over_windows(window.tasks for window in windows)
    return Plot(
        title=f"{METRICS[metric]} by window",
        svg=render(draw, width=570, height=250, label=f"{METRICS[metric]} of every window", prefix=metric),
        legend=tuple(
            LegendEntry(css_color(SERIES[index % NUM_SERIES]), task, f"mean {formats.metric(means[task][metric])}")  # type: ignore[literal-required]
            for index, task in enumerate(tasks)
        ),
    )


def _number(value: float | None) -> float:
    return float("nan") if value is None else value


def _time(time_ms: int | None) -> str:
    return formats.MISSING if time_ms is None else iso(time_ms).replace("T", " ").removesuffix(":00Z").removesuffix("Z")
