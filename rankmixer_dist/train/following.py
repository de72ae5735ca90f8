"""A training run as seen by who follows it from outside: its checkpoints, what each has seen, whether it goes on."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from rankmixer_dist.checkpoint.about import ABOUT_NAME, About, read_about
from rankmixer_dist.checkpoint.folder import checkpoints
from rankmixer_dist.config import RunConfig
from rankmixer_dist.errors import UserError
from rankmixer_dist.there import is_there
from rankmixer_dist.train.run_dir import is_trained_now

State = Literal["running", "stopped", "finished"]
"""stopped: nobody trains, though the run is not at its end."""


@dataclass(frozen=True)
class Published:
    """A complete checkpoint.

    trained_until: Unix ms; no row at or after it has been trained on; None where that is not known. ends_split: all
    of the split that ends there has been trained on, so that no later checkpoint has the same `trained_until`.
    ends_run: the run trains no further.
    """

    path: Path
    step: int
    trained_until: int | None
    ends_split: bool
    ends_run: bool


class FollowedRun:
    """The run of a config.

    Args:
        split_rows: rows of each of `train.splits`.
    """

    def __init__(self, config: RunConfig, split_rows: Mapping[str, int]) -> None:
        self._config, self._split_rows = config, split_rows
        self._known: dict[tuple[str, int], Published] = {}

    def checkpoints(self) -> list[Published]:
        """Those that are there now, oldest first.

        Raises:
            UserError: one is damaged.
        """
        found = []
        for path in checkpoints(self._config.run_dir):
            try:
                key = (path.name, (path / ABOUT_NAME).stat().st_mtime_ns)
                if key not in self._known:
                    self._known[key] = self.describe(path)
            except (UserError, FileNotFoundError) as error:
                if not is_there(path):
                    continue  # training has removed it meanwhile
                if isinstance(error, FileNotFoundError):
                    raise UserError(f"{path}: a checkpoint without {ABOUT_NAME}; remove the folder") from error
                raise
            found.append(self._known[key])
        return found

    def describe(self, path: Path) -> Published:
        """A checkpoint of the run, wherever it lies; raises as `checkpoints` does."""
        about = read_about(path)
        ends_split, ends_run = self._ends(about)
        return Published(path, about.step, about.trained_until, ends_split, ends_run)

    def due(self, start: int) -> int | None:
        """Until when rows before `start` are trained on: the end (Unix ms) of the last split that ends by then."""
        ends = [self._config.data.splits[split].to_ms()[1] for split in self._config.train.splits]
        return max((end for end in ends if end <= start), default=None)

    def state(self) -> State:
        """Whether the run goes on."""
        if any(checkpoint.ends_run for checkpoint in self.checkpoints()):
            return "finished"
        return "running" if is_trained_now(self._config.run_dir) else "stopped"

    def _ends(self, about: About) -> tuple[bool, bool]:
        train = self._config.train
        passes = len(train.splits) if train.in_turn else train.epochs
        place = about.position.epoch
        split = train.splits[min(place, len(train.splits) - 1) if train.in_turn else 0]
        whole = place >= passes or about.position.row >= self._split_rows[split]
        ends_split = whole and (train.in_turn or place + 1 >= passes)
        ends_run = whole and place + 1 >= passes
        return ends_split, ends_run or (train.max_steps is not None and about.step >= train.max_steps)
