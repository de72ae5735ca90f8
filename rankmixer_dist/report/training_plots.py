"""Loss, learning rate, throughput and step time, drawn from the training log."""

from dataclasses import dataclass

import numpy as np
from matplotlib.axes import Axes
from matplotlib.ticker import FuncFormatter, MaxNLocator
from numpy.typing import NDArray

from rankmixer_dist.report import formats
from rankmixer_dist.report.curves import smoothed, thinned
from rankmixer_dist.report.step_axes import (
    MAX_LINE_POINTS,
    draw_line,
    finish_step_axes,
    half_life,
    last_average,
    limit_to_bulk,
)
from rankmixer_dist.report.svg import MUTED, NUM_SERIES, SERIES, SURFACE, LegendEntry, Plot, css_color, render
from rankmixer_dist.report.training_log import TrainingLog


@dataclass(frozen=True)
class TimePart:
    """A part of the step time and its colour."""

    name: str
    color: str


TIME_PARTS = {
    "dense_s": TimePart("dense", SERIES[0]),
    "sparse_s": TimePart("sparse", SERIES[2]),
    "data_wait_s": TimePart("data wait", SERIES[1]),
}
CHECKPOINTS = TimePart("waiting for checkpoints", SERIES[4])
COMMUNICATION = TimePart("collectives, inside sparse and dense", SERIES[3])
OTHER_TIME = TimePart("other", MUTED)


def loss_plot(log: TrainingLog) -> Plot:
    """Training loss, each log line faint and their moving average strong."""

    def draw(axes: Axes) -> None:
        draw_line(axes, log, log.columns["loss"], SERIES[0])
        limit_to_bulk(axes, log.columns["loss"])
        finish_step_axes([axes], log)

    return Plot(
        title="Training loss",
        svg=render(draw, width=570, height=250, label="training loss by step", prefix="loss"),
        legend=(
            LegendEntry(css_color(SERIES[0]), "all tasks", formats.metric(last_average(log, log.columns["loss"]))),
        ),
        note=" ".join(filter(None, (_range_note(log), _skipped_note(log), _unsaved_note(log)))),
    )


def task_loss_plots(log: TrainingLog) -> list[Plot]:
    """Training loss of every task, each on its own scale: a rare task's loss is a tenth of the others'."""
    if not log.loss_per_task:
        return []
    plots = []
    width = 1140 // min(len(log.loss_per_task), 5) - 46  # as they stand side by side, that text is as large everywhere
    for index, (task, losses) in enumerate(log.loss_per_task.items()):
        color = SERIES[index % NUM_SERIES]

        def draw(axes: Axes, losses: NDArray[np.float64] = losses, color: str = color) -> None:
            draw_line(axes, log, losses, color)
            limit_to_bulk(axes, losses)
            finish_step_axes([axes], log, max_ticks=3)

        plots.append(
            Plot(
                title=task,
                svg=render(
                    draw, width=width, height=160, label=f"training loss of {task} by step", prefix=f"task-loss-{index}"
                ),
                legend=(LegendEntry(css_color(color), "loss", formats.metric(last_average(log, losses))),),
            )
        )
    return plots


def learning_rate_plot(log: TrainingLog) -> Plot:
    """Learning rates of the dense part and of the tables, which are often a power of ten apart."""
    shown = [
        (name, text, color)
        for name, text, color in (("lr", "dense", SERIES[0]), ("sparse_lr", "tables", SERIES[2]))
        if log.has(name)
    ]

    def draw(*rows: Axes) -> None:
        kept = thinned(len(log.columns["step"]), MAX_LINE_POINTS)
        for axes, (name, _, color) in zip(rows, shown, strict=True):
            axes.plot(log.columns["step"][kept], log.columns[name][kept], color=color)
            axes.set_ylim(0, 1.12 * np.nanmax(log.columns[name]) or 1)
            axes.yaxis.set_major_locator(MaxNLocator(3))
            axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:.2g}"))
        finish_step_axes(rows, log)

    return Plot(
        title="Learning rate",
        svg=render(draw, width=570, height=250, label="learning rates by step", num_rows=len(shown), prefix="lr"),
        legend=tuple(
            LegendEntry(css_color(color), text, f"now {log.columns[name][np.isfinite(log.columns[name])][-1]:.3g}")
            for name, text, color in shown
        ),
    )


def throughput_plot(log: TrainingLog) -> Plot:
    """Samples a second and, where it was measured, MFU below it."""
    shown = [(name, color) for name, color in (("samples_per_s", SERIES[0]), ("mfu", SERIES[4])) if log.has(name)]

    def draw(*rows: Axes) -> None:
        for axes, (name, color) in zip(rows, shown, strict=True):
            draw_line(axes, log, log.columns[name], color)
            axes.set_ylim(0, 1.15 * np.nanpercentile(log.columns[name], 99.5) or 1)
            axes.yaxis.set_major_locator(MaxNLocator(4))
        if "mfu" in dict(shown):
            rows[-1].yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{100 * value:.3g} %"))
        if "samples_per_s" in dict(shown):
            rows[0].yaxis.set_major_formatter(FuncFormatter(lambda value, _: formats.scaled(value)))
        finish_step_axes(rows, log)

    entries = {
        "samples_per_s": LegendEntry(
            css_color(SERIES[0]), "samples / s", f"median {formats.scaled(log.median('samples_per_s'))}"
        ),
        "mfu": LegendEntry(css_color(SERIES[4]), "MFU", f"median {formats.percent(log.median('mfu'))}"),
    }
    return Plot(
        title="Throughput",
        svg=render(draw, width=570, height=290, label="throughput by step", num_rows=len(shown), prefix="throughput"),
        legend=tuple(entries[name] for name, _ in shown),
    )


def step_time_plot(log: TrainingLog) -> Plot:
    """Stacked area of the parts of the step time; where the whole step was timed, what no part explains is "other".

    The collectives are a line over it: they run inside the sparse and the dense part, and beside computation.
    """
    parts = {TIME_PARTS[name]: np.nan_to_num(log.columns[name]) for name in TIME_PARTS if log.has(name)}
    if log.total("checkpoint_wait_s"):
        steps = np.diff(log.columns["step"], prepend=0)
        parts[CHECKPOINTS] = np.nan_to_num(log.columns["checkpoint_wait_s"]) / steps
    if log.has("step_s"):
        parts[OTHER_TIME] = np.maximum(0.0, np.nan_to_num(log.columns["step_s"]) - sum(parts.values()))
    total = sum(seconds.mean() for seconds in parts.values())

    def draw(axes: Axes) -> None:
        averages = np.stack([smoothed(seconds, half_life(log)) for seconds in parts.values()])
        kept = thinned(averages.shape[1], MAX_LINE_POINTS)
        axes.stackplot(
            log.columns["step"][kept],
            averages[:, kept],
            colors=[part.color for part in parts],
            alpha=0.85,
            edgecolor=SURFACE,
            linewidth=0.8,
        )
        if log.has("comm_s"):
            axes.plot(
                log.columns["step"][kept],
                smoothed(log.columns["comm_s"], half_life(log))[kept],
                color=COMMUNICATION.color,
                linestyle=(0, (4, 2)),
            )
        axes.set_ylim(0, 1.12 * averages.sum(axis=0).max() or 1)
        axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: formats.seconds(value) if value else "0"))
        finish_step_axes([axes], log)

    shares = dict(reversed(parts.items()))
    if log.has("comm_s"):
        shares[COMMUNICATION] = log.columns["comm_s"][np.isfinite(log.columns["comm_s"])]
    return Plot(
        title="Where the step time goes",
        svg=render(draw, width=570, height=290, label="parts of the step time by step", prefix="step-time"),
        legend=tuple(
            LegendEntry(
                css_color(part.color),
                part.name,
                f"{100 * seconds.mean() / total:.0f} % · {formats.seconds(seconds.mean())}" if total else "",
            )
            for part, seconds in shares.items()
        ),
        note=_checkpoint_note(log),
    )


def _checkpoint_note(log: TrainingLog) -> str:
    waited = log.columns["checkpoint_wait_s"]
    if not log.total("checkpoint_wait_s"):
        return ""
    longest = int(np.nanargmax(waited))
    return (
        f"Training waited {formats.seconds(log.total('checkpoint_wait_s'))} for checkpoints in all, at most "
        f"{formats.seconds(waited[longest])} (in the line of step {log.columns['step'][longest]:.0f})."
    )


def _range_note(log: TrainingLog) -> str:
    out = np.nan_to_num(log.columns["tasks_out_of_range"])
    lines = np.flatnonzero(out)
    if not len(lines):
        return ""
    first, last = (log.columns["step"][line] for line in (lines[0], lines[-1]))
    return (
        f"The loss of up to {out.max():.0f} of {len(log.loss_per_task)} tasks left its range, three times the loss of "
        f"predicting a task's share of positives: in {len(lines)} of {len(out)} lines, from step {first:.0f} to "
        f"{last:.0f}."
    )


def _unsaved_note(log: TrainingLog) -> str:
    failed = log.total("failed_checkpoints")
    if not failed:
        return ""
    last = log.columns["step"][np.flatnonzero(np.nan_to_num(log.columns["failed_checkpoints"]))[-1]]
    return (
        f"Checkpoints that could not be saved, because of the disk or of weights that were not finite: {failed:.0f}, "
        f"the last in the line of step {last:.0f}."
    )


def _skipped_note(log: TrainingLog) -> str:
    if not log.total("skipped_steps"):
        return ""
    last = log.columns["step"][np.flatnonzero(np.nan_to_num(log.columns["skipped_steps"]))[-1]]
    return (
        f"Steps left out because their loss was not finite: {log.total('skipped_steps'):.0f}, the last in the line of "
        f"step {last:.0f}. Their rows are in non_finite.jsonl."
    )
