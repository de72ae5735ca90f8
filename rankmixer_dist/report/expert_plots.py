"""What a mixture's experts do in training: how many are active, what steers that, and what sparse serving costs."""

from collections.abc import Sequence

import numpy as np
from matplotlib.axes import Axes
from matplotlib.ticker import FuncFormatter, LogLocator, MaxNLocator, NullLocator
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
from rankmixer_dist.report.svg import INK, MUTED, NUM_SERIES, SERIES, LegendEntry, Plot, css_color, render
from rankmixer_dist.report.training_log import TrainingLog

MAX_TOKEN_LINE_POINTS = 200
LABEL_SPACING = 0.06  # of the height of the axes: what a line of text takes
DASHED = (0, (4, 3))


def block_plots(log: TrainingLog) -> list[Plot]:
    """Share of active experts of every token, a picture a block, all on one scale (RankMixer, Fig. 4)."""
    averages = [
        np.stack([smoothed(shares, half_life(log)) for shares in active_TX]) for active_TX in log.active_per_block
    ]
    highest = max((float(np.nanmax(lines_TX)) for lines_TX in averages if np.isfinite(lines_TX).any()), default=0.0)
    top = 1.08 * max(highest, log.newest("routing/target") or 0.0) or 1.0
    plots = []
    for block, lines_TX in enumerate(averages):
        mean_X = lines_TX.mean(axis=0)

        def draw(axes: Axes, lines_TX: NDArray[np.float64] = lines_TX, mean_X: NDArray[np.float64] = mean_X) -> None:
            kept = thinned(len(mean_X), MAX_TOKEN_LINE_POINTS)
            steps = log.columns["step"][kept]
            colors = [_token_color(token, len(lines_TX)) for token in range(len(lines_TX))]
            for color, shares in zip(colors, lines_TX, strict=True):
                axes.plot(steps, shares[kept], color=color, linewidth=1.2, alpha=0.7)
            axes.plot(steps, mean_X[kept], color=INK, linewidth=2.5)
            _draw_target(axes, log)
            axes.set_ylim(0, top)
            _label_lines(axes, steps[-1], lines_TX[:, -1], float(mean_X[-1]), colors, spacing=LABEL_SPACING * top)
            _format_shares(axes)
            finish_step_axes([axes], log)

        label = f"active experts by step, a line a token of block {block}"
        plots.append(
            Plot(
                title=f"Active experts, block {block}",
                svg=render(draw, width=570, height=250, label=label, prefix=f"active-{block}"),
                legend=(
                    LegendEntry(css_color(INK), "mean", formats.percent(_finite(mean_X[-1]))),
                    *_target_entry(log),
                    *_token_entries(lines_TX[:, -1]),
                ),
            )
        )
    return plots


def lambda_plot(log: TrainingLog) -> Plot:
    """What closes gates and what opens them, and below it what they steer: the share of active experts."""
    lambdas, mus = log.columns["routing/lambda"], log.columns["routing/mu"]
    both = np.concatenate([lambdas, mus])
    exponents = np.log10([np.nanmin(both), np.nanmax(both)])
    low, high = np.floor(exponents[0]), np.ceil(exponents[1])

    def draw(above: Axes, below: Axes) -> None:
        kept = thinned(len(lambdas), MAX_LINE_POINTS)
        above.plot(log.columns["step"][kept], lambdas[kept], color=SERIES[4])
        above.plot(log.columns["step"][kept], mus[kept], color=SERIES[2], linestyle=DASHED)
        above.set_yscale("log")
        above.set_ylim(10**low, 10 ** max(high, low + 1))
        above.yaxis.set_major_locator(LogLocator(numticks=5))
        above.yaxis.set_minor_locator(NullLocator())
        above.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"1e{np.log10(value):.0f}"))
        draw_line(below, log, log.columns["routing/active_ratio"], SERIES[0])
        _draw_target(below, log)
        below.set_ylim(0, 1.2 * np.nanmax(log.columns["routing/active_ratio"]) or 1)
        _format_shares(below)
        finish_step_axes([above, below], log)

    active = last_average(log, log.columns["routing/active_ratio"])
    return Plot(
        title="Lambda and what it steers",
        svg=render(draw, width=570, height=290, label="lambda and active experts by step", num_rows=2, prefix="lambda"),
        legend=(
            LegendEntry(css_color(SERIES[4]), "lambda, closing", f"now {log.newest('routing/lambda'):.3g}"),
            LegendEntry(css_color(SERIES[2]), "mu, opening", f"now {log.newest('routing/mu'):.3g}"),
            LegendEntry(css_color(SERIES[0]), "active experts", formats.percent(active)),
            *_target_entry(log),
        ),
    )


def path_gap_plot(log: TrainingLog) -> Plot:
    """How much higher the loss of a batch is by the path that serves than by the one that trains."""
    gaps = log.columns["routing/path_gap"]

    def draw(axes: Axes) -> None:
        axes.axhline(0, color=MUTED, linewidth=1)
        draw_line(axes, log, gaps, SERIES[3])
        limit_to_bulk(axes, gaps)
        axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: formats.signed_percent(value) if value else "0"))
        finish_step_axes([axes], log)

    largest = int(np.nanargmax(gaps))
    return Plot(
        title="Loss as served over loss as trained",
        svg=render(draw, width=570, height=290, label="gap of the served path's loss by step", prefix="path-gap"),
        legend=(LegendEntry(css_color(SERIES[3]), "gap", formats.signed_percent(last_average(log, gaps))),),
        note=(
            f"One batch a log line, the same for both paths; at most {formats.signed_percent(gaps[largest])} "
            f"(at step {formats.scaled(log.columns['step'][largest])})."
        ),
    )


def _draw_target(axes: Axes, log: TrainingLog) -> None:
    if log.has("routing/target"):
        axes.plot(log.columns["step"], log.columns["routing/target"], color=MUTED, linewidth=1.5, linestyle=DASHED)


def _target_entry(log: TrainingLog) -> Sequence[LegendEntry]:
    target = log.newest("routing/target")
    return () if target is None else (LegendEntry(css_color(MUTED), "target, dashed", formats.percent(target)),)


def _token_entries(ends: NDArray[np.float64]) -> Sequence[LegendEntry]:
    if len(ends) > NUM_SERIES:
        return ()
    return [
        LegendEntry(css_color(SERIES[token]), f"token {token}", formats.percent(_finite(share)))
        for token, share in enumerate(ends)
    ]


def _token_color(token: int, num_tokens: int) -> str:
    """One colour for all tokens where there are more than colours: their numbers tell them apart."""
    return SERIES[token] if num_tokens <= NUM_SERIES else SERIES[0]


def _label_lines(
    axes: Axes, step: float, ends: NDArray[np.float64], mean: float, colors: Sequence[str], *, spacing: float
) -> None:
    """Numbers at the ends of the tokens' lines; where they would collide, those furthest from the mean have theirs."""
    labelled: list[float] = []
    for token in sorted(np.flatnonzero(np.isfinite(ends)).tolist(), key=lambda token: -abs(ends[token] - mean)):
        if all(abs(ends[token] - other) >= spacing for other in labelled):
            labelled.append(ends[token])
            axes.annotate(
                str(token), (step, ends[token]), xytext=(5, 0), textcoords="offset points", va="center",
                color=colors[token], fontsize=10.5,
            )  # fmt: skip


def _format_shares(axes: Axes) -> None:
    axes.yaxis.set_major_locator(MaxNLocator(4))
    axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{100 * value:.3g} %"))


def _finite(value: float) -> float | None:
    return float(value) if np.isfinite(value) else None
