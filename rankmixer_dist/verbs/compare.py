"""Sets evaluated runs side by side: AUC and UAUC of every task, over seeds, with p-values, size and speed."""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from rich.table import Table

from rankmixer_dist.command_line import console, verb_parser

if TYPE_CHECKING:
    from rankmixer_dist.report.compare import Comparison, Line

USAGE = """\
python launch/compare.py runs/rankmixer_1 runs/rankmixer_2 runs/wukong_1 runs/wukong_2
python launch/compare.py runs/base_* runs/no_norm_* --difference --markdown ablation.md
python launch/compare.py runs/base_* runs/no_norm_* --p-values

Runs that differ by seed alone make one line: mean, and lowest to highest. What sets the lines apart is read off the
runs' configs. All runs must have been evaluated on the same rows. --p-values asks how likely chance alone, in the rows
that were scored, makes such a difference between two trained models: by DeLong's test for AUC, by flipping the signs of
users' differences for UAUC; lowest to highest over the seeds. Another seed moves a model too, which the range shows.
"""

MAX_LABEL = 24
"""Characters of a label that stands in the tables themselves."""


def main(arguments: list[str]) -> None:
    """Parses the command line, reads the runs and prints the table."""
    parser = verb_parser("compare", __doc__, USAGE)
    parser.add_argument("runs", nargs="+", type=Path, metavar="RUN", help="run directories, the reference first")
    parser.add_argument("--difference", action="store_true", help="show the others less the first, seed by seed")
    parser.add_argument("--p-values", action="store_true", help="the same with the p-value of each, from predictions/")
    parser.add_argument("--markdown", type=Path, metavar="OUT", help="also write the table to a file")
    parsed = parser.parse_args(arguments)
    from rankmixer_dist.report.compare import compare, lines_of, markdown

    comparison = compare(parsed.runs)
    with console(stderr=True).status("testing the differences" if parsed.p_values else "reading the runs"):
        lines = [*lines_of(comparison, differences=parsed.difference or parsed.p_values, tested=parsed.p_values)]
    shown = console()
    names = short_names([line.label for line in lines])
    shown.print(figures_grid(comparison, lines, names), sizes_grid(comparison, lines, names))
    for name, line in zip(names, lines, strict=True):
        if name != line.label:
            shown.print(f"{name}: {line.label}", soft_wrap=True)
    if parsed.markdown is not None:
        parsed.markdown.write_text(markdown(comparison, lines))


def short_names(labels: Sequence[str]) -> list[str]:
    """The labels, or numbers for those that would take the place of the figures; a line below says what a number is."""
    return [label if len(label) <= MAX_LABEL else f"[{place}]" for place, label in enumerate(labels)]


def figures_grid(comparison: "Comparison", lines: Sequence["Line"], names: Sequence[str]) -> Table:
    """AUC and UAUC of each task."""
    grid = _grid(f"{comparison.split}: {comparison.rows:,} rows", ("seeds", "task", "AUC", "UAUC"))
    for name, line in zip(names, lines, strict=True):
        for place, task in enumerate(comparison.tasks):
            whose = (name, line.seeds) if place == 0 else ("", "")
            grid.add_row(*whose, task, *line.figures[2 * place : 2 * place + 2])
        grid.add_section()
    return grid


def sizes_grid(comparison: "Comparison", lines: Sequence["Line"], names: Sequence[str]) -> Table:
    """Size and speed of each group."""
    grid = _grid("", comparison.size_columns)
    for name, line in zip(names, lines, strict=True):
        grid.add_row(name, *line.size)
    return grid


def _grid(title: str, columns: Sequence[str]) -> Table:
    grid = Table(title=title or None)
    grid.add_column("", overflow="fold")
    for column in columns:
        grid.add_column(column, justify="left" if column == "task" else "right", no_wrap=True)
    return grid
