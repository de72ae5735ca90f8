"""What a run leaves for later eyes: `metrics.jsonl`, a line a log interval, and the same for TensorBoard."""

import json
import math
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

from torch.utils.tensorboard import SummaryWriter

from rankmixer_dist.report.training_log import flat, read_lines


def cut_back(path: Path, step: int, *, keep: Callable[[dict[str, Any]], bool] = lambda _: False) -> None:
    """Removes the lines of steps after `step`, left by a run that died after its last checkpoint: it takes them again.

    Args:
        keep: lines that stay all the same.

    Raises:
        UserError: a line other than the last is not JSON.
    """
    kept = [line for line in read_lines(path) if line["step"] <= step or keep(line)]
    aside = path.with_suffix(".partial")
    aside.write_text("".join(json.dumps(line) + "\n" for line in kept))
    os.replace(aside, path)


class MetricsLog:
    """Appends to a run's `metrics.jsonl` and `tensorboard/`.

    Args:
        resume_step: the run's newest step; lines of later ones are removed.
    """

    def __init__(self, run_dir: Path, *, resume_step: int) -> None:
        self._path = run_dir / "metrics.jsonl"
        cut_back(self._path, resume_step)
        self._file = self._path.open("a")
        self._board = SummaryWriter(str(run_dir / "tensorboard"), purge_step=resume_step + 1)

    def write(self, line: dict[str, Any]) -> None:
        """Writes one interval; NaN and infinity become null, which JSON has."""
        self._file.write(json.dumps(_finite(line)) + "\n")
        self._file.flush()
        for key, value in flat(line):
            if isinstance(value, int | float) and math.isfinite(value) and key != "step":
                self._board.add_scalar(key, value, line["step"])

    def close(self) -> None:
        """Flushes both."""
        self._file.close()
        self._board.close()


def _finite(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _finite(item) for key, item in value.items()}
    return None if isinstance(value, float) and not math.isfinite(value) else value
