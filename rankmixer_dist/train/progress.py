"""What a person watches while rows go by: a live bar on a terminal, plain lines elsewhere."""

import math
import sys
from typing import Any, Self

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from rankmixer_dist.train.rank_figures import stands_out


class TrainProgress:
    """Shows loss, samples/s, MFU and the share of time spent waiting for data; silent on all ranks but one."""

    def __init__(self, *, total_steps: int, done_steps: int, enabled: bool) -> None:
        self._enabled = enabled
        self._total = total_steps
        self._own: dict[str, Any] = {}
        self._bar: Progress | None = None
        if enabled and sys.stderr.isatty():
            self._bar = Progress(
                TextColumn("[bold]train"),
                BarColumn(bar_width=None),
                MofNCompleteColumn(),
                TimeElapsedColumn(),
                TimeRemainingColumn(),
                TextColumn("{task.fields[figures]}"),
                console=Console(stderr=True),
            )
            self._task = self._bar.add_task("train", total=total_steps, completed=done_steps, figures="")

    def __enter__(self) -> Self:
        if self._bar is not None:
            self._bar.start()
        return self

    def __exit__(self, *_: object) -> None:
        if self._bar is not None:
            self._bar.stop()

    def advance(self) -> None:
        """One more step."""
        if self._bar is not None:
            self._bar.advance(self._task)

    def _new(self, ranks: dict[str, Any]) -> dict[str, Any]:
        """The figures of all ranks without an own time that the line before has shown: it is measured now and then."""
        shown, self._own = self._own, ranks.get("own_s", {})
        return {name: figure for name, figure in ranks.items() if name != "own_s" or figure != shown}

    def show(self, line: dict[str, Any]) -> None:
        """The figures of a log interval."""
        if not self._enabled:
            return
        mfu = "" if line["mfu"] is None else f"  MFU {line['mfu']:.1%}"
        rate, wait = f"{line['samples_per_s']:,.0f} rows/s{mfu}", f"data wait {line['data_wait_share']:.0%}"
        # An interval whose batches were all left out has no loss.
        loss = f"loss {line['loss']:.4f}" if math.isfinite(line["loss"]) else "no loss"
        left_out = f"  not finite, left out: {line['skipped_steps']}" if line["skipped_steps"] else ""
        routing = line.get("routing", {})
        active = f"  active {routing['active_ratio']:.1%}" if "active_ratio" in routing else ""
        odd = stands_out(self._new(line.get("ranks", {})), line["step_s"])
        figures = f"{loss}{active}  {rate}  {wait}{left_out}{f'  {odd}' if odd else ''}"
        if self._bar is not None:
            self._bar.update(self._task, figures=figures)
        else:
            print(f"step {line['step']}/{self._total}  {figures}", file=sys.stderr, flush=True)


class EvaluateProgress:
    """Rows scored so far, then parts counted; on a terminal only, since scoring is short beside training."""

    def __init__(self, *, rows: int, enabled: bool) -> None:
        self._bar: Progress | None = None
        if enabled and sys.stderr.isatty():
            columns = (
                TextColumn("[bold]{task.description}"),
                BarColumn(bar_width=None),
                MofNCompleteColumn(),
                TimeRemainingColumn(),
            )
            self._bar = Progress(*columns, console=Console(stderr=True))
            self._task = self._bar.add_task("score", total=rows)

    def __enter__(self) -> Self:
        if self._bar is not None:
            self._bar.start()
        return self

    def __exit__(self, *_: object) -> None:
        if self._bar is not None:
            self._bar.stop()

    def advance(self, rows: int) -> None:
        """That many rows more, over all ranks."""
        if self._bar is not None:
            self._bar.advance(self._task, rows)

    def counted(self, stage: str, done: int, parts: int) -> None:
        """So many parts of a stage of counting are done."""
        if self._bar is not None:
            if self._bar.tasks[-1].description != stage:
                self._task = self._bar.add_task(stage, total=parts)
            self._bar.update(self._task, completed=done)
