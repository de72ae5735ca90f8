"""What an evaluation knows and has told, kept on disk so that the next start goes on from it.

stream_eval.jsonl      what was told: a line a window each time its figures are new, a line a shard that was set aside
stream/ledger.jsonl    what was decided: the windows, each shard's content, each window's checkpoint, which went
stream/scores/<window>/<shard>   what was scored; a file that is there is done
"""

from collections.abc import Container
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from data_pipeline.streaming.checkpoints import Checkpoint, Choice, Dropped
from data_pipeline.streaming.lines import LineFile
from data_pipeline.streaming.scoring import Figures, sweep
from data_pipeline.streaming.shards import Facts, Stamp
from data_pipeline.streaming.windows import WindowPlan
from rankmixer_dist.errors import UserError
from rankmixer_dist.metrics import Window
from rankmixer_dist.metrics.windows import iso
from rankmixer_dist.there import matching

RESULTS_NAME = "stream_eval.jsonl"
LEDGER_NAME = "ledger.jsonl"


@dataclass(frozen=True)
class Lost:
    """Rows of a shard that a window will not have, and why."""

    rows: int
    reason: str


class State:
    """Facts, choices and lines of an evaluation; every method that changes them writes first.

    Args:
        folder: the evaluation's own, `stream/` of the run directory.

    Raises:
        UserError: a file was damaged, or the folder holds other windows.
    """

    def __init__(self, run_dir: Path, folder: Path, plan: WindowPlan) -> None:
        self._folder, self._plan = folder, plan
        self._ledger, self._results = LineFile(folder / LEDGER_NAME), LineFile(run_dir / RESULTS_NAME)
        self.shards: dict[str, Facts] = {}
        self._members: dict[Window, set[str]] = {}
        self.choices: dict[Window, Choice] = {}
        self.dropped: list[Dropped] = []
        self.told: dict[Window, dict[str, Any]] = {}
        self.problems: dict[str, str] = {}
        self.lost: dict[tuple[str, Window], Lost] = {}
        self._reopened: set[Window] = set()
        self._begin({"kind": "plan", "start": iso(plan.start_ms), "window_s": plan.length_ms // 1000})
        for line in self._ledger.lines:
            self._take(line)
        for line in self._results.lines:
            self._take_told(line)
        for name, facts in self.shards.items():  # killed before it could tell
            self.tell_problem(name, facts.problem or self.problems.get(name))
        sweep(folder / "scores")
        self.done = {(path.name, self._named(path.parent.name)) for path in matching(folder / "scores", "*/*.parquet")}

    @property
    def lines(self) -> list[dict[str, Any]]:
        """What was told, in order."""
        return self._results.lines

    def close(self) -> None:
        """Closes the files."""
        self._ledger.close()
        self._results.close()

    def windows(self) -> list[Window]:
        """Those that have rows, in order."""
        return sorted(self._members)

    def members(self, window: Window) -> list[str]:
        """Shards with rows of a window."""
        return sorted(self._members.get(window, ()))

    def rows(self, window: Window) -> int:
        """Rows that came for a window, repeated ones among them."""
        return sum(self.shards[name].rows[window] for name in self._members.get(window, ()))

    def is_told(self, window: Window) -> bool:
        """Whether the newest line of a window is about all that has come for it."""
        known = window in self.told and window not in self._reopened
        return known and self.told[window]["shards"] == self.members(window)

    def missing(self, window: Window) -> list[str]:
        """A window's shards that are neither scored nor lost."""
        pairs = [(name, window) for name in self.members(window)]
        return [pair[0] for pair in pairs if pair not in self.done and pair not in self.lost]

    def come_short(self) -> set[str]:
        """Shards of which a window's line lacks rows though it has a checkpoint."""
        told = [window for window in self.told if self.choices[window].checkpoint is not None]
        return {name for window in told for name in self.members(window) if (name, window) not in self.done}

    def find_again(self, name: str, checkpoints: Container[str]) -> None:
        """A shard that is there as it was when it came: rows that were lost are to be scored after all.

        Args:
            checkpoints: those that can still score; windows of others stay as they were told.
        """
        unscored = [window for window in self.shards[name].rows if (name, window) not in self.done]
        chosen = {window: self.choices[window].checkpoint for window in unscored if window in self.choices}
        again = [window for window, checkpoint in chosen.items() if checkpoint in checkpoints]
        for window in again:
            self.lost.pop((name, window), None)
        self._reopened.update(again)
        if again and len(again) == len(chosen):
            self.tell_problem(name, None)

    def target(self, name: str, window: Window) -> Path:
        """Where the scores of a shard's rows of a window go."""
        return self._folder / "scores" / window.name / name

    @property
    def newest(self) -> int | None:
        """The latest timestamp that has been seen."""
        return max((facts.newest for facts in self.shards.values() if facts.newest is not None), default=None)

    def add_shard(self, facts: Facts) -> None:
        """A shard that has been read; one with a problem is told at once, and so is one that no longer has it."""
        rows = {window.name: count for window, count in facts.rows.items()}
        self._ledger.append(
            {
                "kind": "shard",
                "shard": facts.name,
                "bytes": facts.stamp.bytes,
                "modified_ns": facts.stamp.modified_ns,
                "checksum": facts.checksum,
                "rows": rows,
                "early_rows": facts.early_rows,
                "newest": facts.newest,
                "problem": facts.problem,
            }
        )
        self._take_shard(facts)
        self.tell_problem(facts.name, facts.problem)

    def tell_problem(self, name: str, problem: str | None) -> None:
        """A shard that is set aside, wholly or what is left of it, or is (None) no longer; the same is told once."""
        if self.problems.get(name) != problem:
            line = {"kind": "shard", "shard": name, "problem": problem}
            self._results.append(line)
            self._take_told(line)

    def choose(self, window: Window, choice: Choice) -> None:
        """What scores a window, before anything of it is scored."""
        until = choice.trained_until
        self._ledger.append(
            {
                "kind": "choice",
                "window": window.name,
                "checkpoint": choice.checkpoint,
                "step": choice.step,
                "trained_until": until,
                "reason": choice.reason,
            }
        )
        self.choices[window] = choice

    def needed(self) -> set[str]:
        """Checkpoints that windows score with whose newest line is not about all that has come."""
        return {
            choice.checkpoint
            for window, choice in self.choices.items()
            if choice.checkpoint is not None and not self.is_told(window)
        }

    def drop(self, checkpoint: Checkpoint) -> None:
        """A checkpoint that is to be kept no longer; a window that would have taken it must not take an older one."""
        name, until = checkpoint.path.name, checkpoint.trained_until
        self._ledger.append({"kind": "dropped", "checkpoint": name, "step": checkpoint.step, "trained_until": until})
        self.dropped.append(Dropped(Path(name), checkpoint.step, until))

    def tell(self, window: Window, names: list[str], figures: Figures | None, reason: str | None) -> dict[str, Any]:
        """A window's line, `names` its shards; without figures `reason` says why. Returns the line."""
        choice = self.choices[window]
        before = self.told.get(window)
        lost = sum(self.lost[name, window].rows for name in names if (name, window) in self.lost)
        scored = figures is not None and reason is None
        line: dict[str, Any] = {
            "kind": "window",
            "start": iso(window.start),
            "end": iso(window.end),
            "revision": 1 if before is None else before["revision"] + 1,
            "scored": scored,
            "checkpoint": choice.checkpoint,
            "step": choice.step,
            "trained_until": None if choice.trained_until is None else iso(choice.trained_until),
            "rows": figures.rows if figures is not None else 0,
            "duplicates": figures.duplicates if figures is not None else 0,
            "unscored_rows": lost if figures is not None else sum(self.shards[name].rows[window] for name in names),
            "shards": names,
            "tasks": figures.tasks if figures is not None else {},
        }
        if reason is not None:
            line["reason"] = reason
        self._results.append(line)
        self._take_told(line)
        self._reopened.discard(window)
        return line

    def _begin(self, line: dict[str, Any]) -> None:
        if not self._ledger.lines:
            self._ledger.append(line)
        first = self._ledger.lines[0]
        if first != line:
            raise UserError(
                f"{self._folder}: holds windows of {first.get('window_s')} s from {first.get('start')}, the config's "
                f"are {line['window_s']} s from {line['start']}; give those, or remove {self._folder} and "
                f"{RESULTS_NAME} beside it to begin anew"
            )

    def _take(self, line: dict[str, Any]) -> None:
        if line["kind"] == "shard":
            rows = {self._named(name): count for name, count in line["rows"].items()}
            stamp = Stamp(line["bytes"], line["modified_ns"])
            early_rows, newest, problem = line["early_rows"], line["newest"], line["problem"]
            self._take_shard(Facts(line["shard"], stamp, line["checksum"], rows, early_rows, newest, problem))
        elif line["kind"] == "choice":
            self.choices[self._named(line["window"])] = Choice(
                line["checkpoint"], line["step"], line["trained_until"], line["reason"]
            )
        elif line["kind"] == "dropped":
            self.dropped.append(Dropped(Path(line["checkpoint"]), line["step"], line["trained_until"]))

    def _take_shard(self, facts: Facts) -> None:
        # One that is known was set aside, and had no rows for any window.
        self.shards[facts.name] = facts
        for window in facts.rows:
            self._members.setdefault(window, set()).add(facts.name)

    def _take_told(self, line: dict[str, Any]) -> None:
        if line["kind"] == "window":
            self.told[self._plan.named(line["start"])] = line
        elif line["problem"] is None:
            self.problems.pop(line["shard"], None)
        else:
            self.problems[line["shard"]] = line["problem"]

    def _named(self, name: str) -> Window:
        return self._plan.named(name)
