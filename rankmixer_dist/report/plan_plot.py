"""How full each rank is, drawn from the sharding plan."""

import numpy as np
from matplotlib.axes import Axes
from numpy.typing import NDArray

from rankmixer_dist.report import formats
from rankmixer_dist.report.inputs import Plan
from rankmixer_dist.report.svg import MUTED, SERIES, SURFACE, LegendEntry, Plot, css_color, render

MAX_TABLES_IN_LEGEND = 8
MAX_RANKS_AS_ROWS = 16


def sharding_plot(plan: Plan) -> Plot:
    """Bytes of embedding tables and their optimizer state on every rank, stacked by table."""
    tables = sorted(plan.tables, key=lambda table: table.bytes, reverse=True)
    named = tables if len(tables) <= MAX_TABLES_IN_LEGEND + 1 else tables[:MAX_TABLES_IN_LEGEND]
    stacks = [(table.name, np.array(table.bytes_per_rank, np.float64)) for table in named]
    rest = tables[len(named) :]
    if rest:
        stacks.append((f"{len(rest)} smaller tables", np.sum([table.bytes_per_rank for table in rest], axis=0)))
    colors = [*SERIES[: len(named)], *([MUTED] if rest else [])]
    as_rows = plan.world_size <= MAX_RANKS_AS_ROWS

    def draw(axes: Axes) -> None:
        filled = np.zeros(plan.world_size)
        ranks = np.arange(plan.world_size)
        for (_, num_bytes), color in zip(stacks, colors, strict=True):
            if as_rows:
                axes.barh(ranks, num_bytes, left=filled, color=color, height=0.62, edgecolor=SURFACE, linewidth=1.2)
            else:
                axes.bar(ranks, num_bytes, bottom=filled, color=color, width=1.0, linewidth=0, antialiased=False)
            filled += num_bytes
        if as_rows:
            _label_rank_rows(axes, filled)
        else:
            _label_rank_columns(axes, filled)

    height = 40 + 30 * plan.world_size if as_rows else 300
    totals = np.array(plan.bytes_per_rank, np.float64)
    balance = f"fullest rank holds {totals.max() / totals.mean():.2f}x the mean" if totals.sum() else ""
    return Plot(
        title="Bytes on each rank",
        svg=render(draw, width=1120, height=height, label="table bytes by rank", prefix="plan"),
        legend=tuple(
            LegendEntry(css_color(color), name, formats.size(num_bytes.sum()))
            for (name, num_bytes), color in zip(stacks, colors, strict=True)
        ),
        note=balance,
    )


def _label_rank_rows(axes: Axes, totals: NDArray[np.float64]) -> None:
    ranks = np.arange(len(totals))
    axes.set_yticks(ranks, [f"rank {rank}" for rank in ranks])
    axes.invert_yaxis()
    axes.set_xticks([])
    axes.spines["bottom"].set_visible(False)
    axes.grid(visible=False)
    axes.set_xlim(0, (totals.max() or 1) * 1.09)
    for rank, total in zip(ranks, totals, strict=True):
        axes.annotate(formats.size(total), (total, rank), xytext=(7, 0), textcoords="offset points", va="center")


def _label_rank_columns(axes: Axes, totals: NDArray[np.float64]) -> None:
    axes.set(xlabel="rank", xlim=(-0.5, len(totals) - 0.5), ylim=(0, (totals.max() or 1) * 1.06))
    # Four to eight ticks at multiples of a power of two, which the binary units print without a remainder.
    tick_bytes = 2.0 ** np.floor(np.log2((totals.max() or 1) / 4))
    ticks = np.arange(0, totals.max() + 1, tick_bytes)
    axes.set_yticks(ticks, [formats.size(tick) for tick in ticks])
    axes.grid(visible=False, axis="x")
