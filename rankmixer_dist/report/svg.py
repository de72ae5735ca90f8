"""Matplotlib figures as small inline SVG whose colours and fonts belong to the page's style sheet."""

import io
import re
from collections.abc import Callable
from dataclasses import dataclass

import matplotlib
from markupsafe import Markup
from matplotlib.axes import Axes
from matplotlib.figure import Figure

NUM_SERIES = 10

# Stand-ins that matplotlib draws with; the finished SVG has the page's CSS variables in their place, so that one
# picture serves the light and the dark theme.
INK, MUTED, GRID, SURFACE = "#0a0b01", "#0a0b02", "#0a0b03", "#0a0b04"
SERIES = tuple(f"#0a0c{index:02x}" for index in range(NUM_SERIES))
CSS_VARIABLES = {INK: "var(--ink)", MUTED: "var(--muted)", GRID: "var(--grid)", SURFACE: "var(--surface)"}
CSS_VARIABLES |= {color: f"var(--series-{index})" for index, color in enumerate(SERIES)}

STYLE = {
    "svg.fonttype": "none",
    "svg.hashsalt": "rankmixer_dist",
    "text.color": INK,
    "font.size": 11,
    "figure.dpi": 72,
    "figure.facecolor": "none",
    "axes.facecolor": "none",
    "axes.edgecolor": GRID,
    "axes.labelcolor": MUTED,
    "axes.labelsize": 11,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.spines.left": False,
    "axes.grid": True,
    "axes.axisbelow": True,
    "grid.color": GRID,
    "grid.linewidth": 1,
    "xtick.color": GRID,
    "ytick.color": GRID,
    "xtick.labelcolor": MUTED,
    "ytick.labelcolor": MUTED,
    "xtick.labelsize": 10.5,
    "ytick.labelsize": 10.5,
    "xtick.major.size": 0,
    "ytick.major.size": 0,
    "xtick.minor.size": 0,
    "ytick.minor.size": 0,
    "lines.linewidth": 2,
    "lines.solid_capstyle": "round",
    "lines.solid_joinstyle": "round",
    "path.simplify": True,
}


@dataclass(frozen=True)
class LegendEntry:
    """A colour, what it stands for, and a figure beside it."""

    color: str
    text: str
    figure: str = ""


@dataclass(frozen=True)
class Plot:
    """A picture with what HTML sets around it."""

    title: str
    svg: Markup
    legend: tuple[LegendEntry, ...] = ()
    note: str = ""


def css_color(color: str) -> str:
    """The CSS value that a stand-in colour becomes, for legends written in HTML."""
    return CSS_VARIABLES[color]


def render(draw: Callable[..., None], *, width: int, height: int, label: str, num_rows: int = 1, prefix: str) -> Markup:
    """Draw into `num_rows` axes above each other that share x, and return inline SVG.

    Args:
        draw: called with one Axes a row.
        width, height: CSS pixels at which the fonts have their nominal size; the picture scales with its column.
        label: what a screen reader says.
        prefix: unique within the page; ids inside the SVG start with it.
    """
    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=(width / 72, height / 72), layout="constrained")
        axes: list[Axes] = list(figure.subplots(num_rows, 1, sharex=True, squeeze=False)[:, 0])
        draw(*axes)
        buffer = io.StringIO()
        no_metadata = dict.fromkeys(("Creator", "Date", "Format", "Type"))
        figure.savefig(buffer, format="svg", metadata=no_metadata)
    return _as_page_element(buffer.getvalue(), label=label, prefix=prefix)


def _as_page_element(svg: str, *, label: str, prefix: str) -> Markup:
    view_box = re.search(r'viewBox="([^"]*)"', svg)
    assert view_box is not None
    body = svg[svg.index(">", svg.index("<svg")) + 1 :]
    # Its rule "*{stroke-linejoin: round}" would reach the whole page.
    body = re.sub(r"<style.*?</style>", "", body, flags=re.DOTALL)
    body = re.sub(r"<!--.*?-->", "", body, flags=re.DOTALL)
    body = re.sub(r"font: ([\d.]+px) [^;\"]*", r"font-size: \1", body)
    body = re.sub(r' d="[^"]*"', lambda path: re.sub(r"\d+\.\d+", lambda n: f"{float(n[0]):.4g}", path[0]), body)
    body = re.sub(r'(id="|href="#|url\(#)', rf"\g<1>{prefix}-", body)
    body = re.sub(r">\s+<", "><", body)
    for color, variable in CSS_VARIABLES.items():
        body = body.replace(color, variable)
    opening = Markup('<svg viewBox="{}" role="img" aria-label="{}">').format(view_box[1], label)
    return opening + Markup(body.rstrip())
