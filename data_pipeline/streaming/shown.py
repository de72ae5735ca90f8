"""What people see of a streaming evaluation: a bar or lines, TensorBoard, and a page that reloads itself."""

import shutil
import sys
import time
from collections.abc import Mapping
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn
from torch.utils.tensorboard import SummaryWriter

from data_pipeline.streaming.state import State
from data_pipeline.streaming.windows import WindowPlan
from rankmixer_dist.errors import disk_errors_told
from rankmixer_dist.library_errors import quiet_board
from rankmixer_dist.metrics import Window
from rankmixer_dist.report.stream_page import StreamView, WindowView, render_stream

_FIGURES = ("auc", "pr_auc", "uauc", "logloss", "ne", "calibration")


class Shown:
    """Tells on stderr, in `tensorboard/stream/` and in `stream.html` of the run directory.

    TensorBoard is written anew from what was told before: a killed evaluation may have left half of it. What cannot be
    written raises a `UserError`.

    Args:
        refresh_s: how often the page is written and reloads itself.
    """

    def __init__(self, run_dir: Path, name: str, plan: WindowPlan, state: State, *, refresh_s: float) -> None:
        self._run_dir, self._name, self._plan, self._refresh_s = run_dir, name, plan, refresh_s
        self._written = -refresh_s
        self._scored_rows = 0
        self._console = Console(stderr=True, highlight=False, soft_wrap=True)
        self._bar: Progress | None = None
        if sys.stderr.isatty():
            columns = (TextColumn("[bold]score"), BarColumn(bar_width=None), TextColumn("{task.fields[figures]}"))
            self._bar = Progress(*columns, TimeElapsedColumn(), console=self._console)
            self._task = self._bar.add_task("score", total=None, figures="")
        self._folder = run_dir / "tensorboard" / "stream"
        shutil.rmtree(self._folder, ignore_errors=True)
        self._quiet = ExitStack()
        self._quiet.enter_context(quiet_board())
        with disk_errors_told(self._folder):
            self._board = SummaryWriter(str(self._folder))
        for line in state.lines:
            self._draw(line)

    def __enter__(self) -> "Shown":
        if self._bar is not None:
            self._bar.start()
        return self

    def __exit__(self, *_: object) -> None:
        if self._bar is not None:
            self._bar.stop()
        with self._quiet, disk_errors_told(self._folder):
            self._board.close()

    def say(self, text: str) -> None:
        """A line for a person who watches."""
        self._console.print(text, markup=False)

    def warn(self, text: str) -> None:
        """A line that must not be missed."""
        self._console.print(f"warning: {text}", markup=False)

    def scored(self, rows: int) -> None:
        """That many rows more, by this process."""
        self._scored_rows += rows

    def told(self, line: Mapping[str, Any]) -> None:
        """A window's figures are complete, or complete again."""
        self._draw(line)
        again = f" (revision {line['revision']})" if line["revision"] > 1 else ""
        if not line["scored"]:
            self.say(f"window {line['start']}{again}: not scored: {line['reason']}")
            return
        figures = ", ".join(
            f"{task} {_text(each['auc'])} / {_text(each['uauc'])}" for task, each in line["tasks"].items()
        )
        repeated = f", {line['duplicates']:,} came again" if line["duplicates"] else ""
        self.say(f"window {line['start']}{again}: {line['rows']:,} rows{repeated}, step {line['step']}: {figures}")

    def update(self, state: State, *, reading: int, replaced: int) -> None:
        """How things stand; cheap, so that it can be called often."""
        if self._bar is not None:
            windows = state.windows()
            closed = sum(map(state.is_told, windows))
            pairs = {(name, window) for window in windows for name in state.members(window)}
            total = sum(state.shards[name].rows[window] for name, window in pairs)
            done = sum(state.shards[name].rows[window] for name, window in pairs & state.done)
            figures = f"{done:,} of {total:,} rows, {closed} of {len(windows)} windows closed"
            self._bar.update(self._task, completed=done, total=total, figures=figures)
        if time.monotonic() - self._written >= self._refresh_s:
            self.write_page(state, reading=reading, replaced=replaced, ended=False)

    def write_page(self, state: State, *, reading: int, replaced: int, ended: bool) -> Path:
        """Writes stream.html; the last one (`ended`) no longer reloads itself."""
        self._written = time.monotonic()
        notes = [f"{replaced} actors died and were replaced"] if replaced else []
        early = sum(facts.early_rows for facts in state.shards.values())
        if early:
            notes.append(f"{early:,} rows are from before the first window")
        if reading:
            notes.append(f"{reading} shards are being read")
        view = StreamView(
            name=self._name,
            windows=[_view(state, window) for window in state.windows()],
            problems=sorted(state.problems.items()),
            notes=notes,
            shards=len(state.shards),
            refresh_s=None if ended else self._refresh_s,
        )
        return render_stream(self._run_dir, view)

    def _draw(self, line: Mapping[str, Any]) -> None:
        """A window is a step, and its time that of its start."""
        if line["kind"] != "window" or not line["scored"]:
            return
        window = self._plan.named(line["start"])
        step = (window.start - self._plan.start_ms) // self._plan.length_ms
        with disk_errors_told(self._folder):
            for task, figures in line["tasks"].items():
                for name in _FIGURES:
                    if figures[name] is not None:
                        self._board.add_scalar(f"{task}/{name}", figures[name], step, walltime=window.start / 1000)
            self._board.flush()


def _view(state: State, window: Window) -> WindowView:
    choice, line = state.choices.get(window), state.told.get(window)
    told = line is not None and state.is_told(window)
    waiting = "waiting for a checkpoint" if choice is None else "open"
    scored = sum(state.shards[name].rows[window] for name in state.members(window) if (name, window) in state.done)
    return WindowView(
        start_ms=window.start,
        end_ms=window.end,
        state="closed" if told else waiting,
        rows=state.rows(window),
        scored_rows=scored,
        shards=len(state.members(window)),
        duplicates=line["duplicates"] if line else None,
        revision=line["revision"] if line else None,
        step=choice.step if choice else None,
        trained_until=choice.trained_until if choice else None,
        reason=line.get("reason") if line else choice.reason if choice else None,
        tasks=line["tasks"] if line else {},
    )


def _text(value: float | None) -> str:
    return "–" if value is None else f"{value:.4f}"
