"""Sets evaluated runs side by side: AUC and UAUC of every task, over seeds, with size and speed."""

from pathlib import Path

from rich.table import Table

from rankmixer_dist.command_line import console, verb_parser

USAGE = """\
python launch/compare.py runs/rankmixer_1 runs/rankmixer_2 runs/wukong_1 runs/wukong_2
python launch/compare.py runs/base_* runs/no_norm_* --difference --markdown ablation.md

Runs that differ by seed alone make one line: mean, and lowest to highest. What sets the lines apart is read off the
runs' configs. All runs must have been evaluated on the same rows.
"""


def main(arguments: list[str]) -> None:
    """Parses the command line, reads the runs and prints the table."""
    parser = verb_parser("compare", __doc__, USAGE)
    parser.add_argument("runs", nargs="+", type=Path, metavar="RUN", help="run directories, the reference first")
    parser.add_argument("--difference", action="store_true", help="show the others less the first, seed by seed")
    parser.add_argument("--markdown", type=Path, metavar="OUT", help="also write the table to a file")
    parsed = parser.parse_args(arguments)
    from rankmixer_dist.report.compare import compare, lines_of, markdown

    comparison = compare(parsed.runs)
    table = Table(title=f"{comparison.split}: {comparison.rows:,} rows")
    for place, column in enumerate(("", "seeds", "task", "AUC", "UAUC", *comparison.size_columns)):
        table.add_column(column, justify="left" if place in (0, 2) else "right")
    for line in lines_of(comparison, differences=parsed.difference):
        for place, task in enumerate(comparison.tasks):
            own, size = ((line.label, line.seeds), line.size) if place == 0 else (("", ""), [""] * len(line.size))
            table.add_row(*own, task, *line.figures[2 * place : 2 * place + 2], *size)
        table.add_section()
    console().print(table)
    if parsed.markdown is not None:
        parsed.markdown.write_text(markdown(comparison, differences=parsed.difference))
