"""What a person sees while the data is prepared: bars on a terminal, plain lines elsewhere, on stderr."""

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

Advance = Callable[[int], None]
"""Reports that some rows more are done, and with them one unit of the stage."""


class Reporter:
    """Stages with their units and rows.

    Args:
        shown: False keeps the stages silent; what must be known (`warn`) is told all the same.
    """

    def __init__(self, *, shown: bool = True) -> None:
        self._shown = shown
        self._console = Console(stderr=True, highlight=False, soft_wrap=True)

    def say(self, text: str) -> None:
        """A line for a person who watches."""
        if self._shown:
            self._console.print(text, markup=False)

    def warn(self, text: str) -> None:
        """A line that must not be missed."""
        self._console.print(f"warning: {text}", markup=False)

    @contextmanager
    def stage(self, title: str, total: int | None, unit: str = "") -> Iterator[Advance]:
        """A stage of `total` units; `None` for one that is done when it is done."""
        if self._shown and sys.stderr.isatty():
            with self._bar(title, total, unit) as advance:
                yield advance
            return
        rows = 0

        def count(more: int) -> None:
            nonlocal rows
            rows += more

        yield count
        if self._shown:
            amount = "" if total is None else f": {total:,} {unit}" + (f", {rows:,} rows" if rows else "")
            self._console.print(f"{title}{amount}", markup=False)

    @contextmanager
    def _bar(self, title: str, total: int | None, unit: str) -> Iterator[Advance]:
        columns = (
            TextColumn("{task.description:<22}"),
            BarColumn(bar_width=30),
            MofNCompleteColumn(),
            TextColumn("{task.fields[rows]}"),
            TimeElapsedColumn(),
        )
        with Progress(*columns, console=self._console) as progress:
            task = progress.add_task(f"{title} {unit}", total=total, rows="")
            rows = 0

            def advance(more: int) -> None:
                nonlocal rows
                rows += more
                progress.update(task, advance=1, rows=f"{rows:,} rows" if rows else "")

            yield advance
            if total is None:
                progress.update(task, total=1, completed=1)
