"""A streaming evaluation in one process with a training run and a folder of shards that the test plays."""

import json
import os
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq

from data_pipeline.streaming.checkpoints import Pins
from data_pipeline.streaming.evaluator import Evaluator
from data_pipeline.streaming.shown import Shown
from data_pipeline.streaming.state import State
from data_pipeline.streaming.windows import WindowPlan
from data_pipeline.streaming.worker import SerialPool, Worker
from rankmixer_dist.config import load_config
from tests.conftest import DAYS

WINDOWS = ("day2", "day3", "day4", "test")


class ByStep:
    """Scores that depend on the row and the checkpoint's step; a real model is in the integration test."""

    def __init__(self, checkpoint: Path) -> None:
        self._step = int(checkpoint.name.removeprefix("step-"))

    def score(self, batch):
        seed = batch.row_id_B.numpy()[:, None] * np.array([7919, 104729, 1299709]) + self._step * 31
        return ((seed % 1009) / 1009).astype(np.float32)


@dataclass(frozen=True)
class Made:
    path: Path
    step: int
    trained_until: int | None
    ends_split: bool = True


class Run:
    """A training run whose checkpoints the test publishes, and of which two are kept."""

    def __init__(self, folder: Path, config) -> None:
        self._folder, self._ends = folder, [config.data.splits[day].to_ms()[1] for day in DAYS]
        self.is_over = False

    def publish(self, day: int) -> None:
        path = self._folder / f"step-{day:08d}"
        path.mkdir(parents=True)
        (path / "weights").write_text(str(day))
        for old in sorted(self._folder.glob("step-*"))[:-2]:
            shutil.rmtree(old)

    def checkpoints(self):
        return [self.describe(path) for path in sorted(self._folder.glob("step-*"))]

    def describe(self, path: Path) -> Made:
        day = int(path.name.removeprefix("step-"))
        return Made(path, day, self._ends[day - 1])

    def due(self, start):
        return max((end for end in self._ends if end <= start), default=None)

    def state(self):
        return "finished" if self.is_over else "running"


class Killed(Exception):
    """The evaluation ends here without a chance to do anything more."""


class Stream:
    """An evaluation that can be started again and again, and the folder that shards arrive in."""

    def __init__(self, config_path: Path, folder: Path, *overrides: str) -> None:
        quick = ("stream.poll_s=0.001", "stream.stop_after_idle_s=0.02", "stream.lateness_hours=0")
        self.config = load_config(config_path, [f"runs={folder / 'runs'}", *quick, *overrides])
        self.folder, self.run_dir, self.incoming = folder, self.config.run_dir, folder / "incoming"
        self.incoming.mkdir(parents=True)
        self.run_dir.mkdir(parents=True)
        self.run = Run(self.run_dir / "checkpoints", self.config)

    def shards(self, *splits: str) -> list[str]:
        return sorted(path.name for split in splits for path in self.config.data.prepared.glob(f"{split}-*.parquet"))

    def arrive(self, name: str, as_name: str | None = None) -> None:
        aside = self.incoming / ".aside"
        shutil.copy(self.config.data.prepared / name, aside)
        os.replace(aside, self.incoming / (as_name or name))

    def evaluate(self, *events, kill_after: int | None = None, expected: Mapping[str, str] | None = None) -> None:
        """Runs to the end; each pass of the loop begins with one of the `events`, which publish or bring something."""
        waiting = list(events)
        passes = 0

        def stops() -> bool:
            nonlocal passes
            if kill_after is not None and passes == kill_after:
                raise Killed
            passes += 1
            if waiting:
                waiting.pop(0)()
            self.run.is_over = not waiting
            return False

        config, plan = self.config.stream, WindowPlan.of(self.config)
        state = State(self.run_dir, self.run_dir / "stream", plan)
        pool = SerialPool(Worker(ByStep, self.config.features, config.batch_size, plan))
        pins = Pins(self.run_dir / "stream" / "checkpoints", self.run.describe)
        with Shown(self.run_dir, "days", plan, state, refresh_s=1000) as shown:
            parts = (config, state, plan, self.run, pool, pins, shown)
            Evaluator(*parts, shards=self.incoming, expected=expected).run(stops)
            shown.write_page(state, reading=0, replaced=0, ended=True)
        state.close()

    def lines(self, kind: str = "window") -> list[dict]:
        lines = map(json.loads, (self.run_dir / "stream_eval.jsonl").read_text().splitlines())
        return [line for line in lines if line["kind"] == kind]

    def final(self) -> dict[str, dict]:
        """The newest line of each window, without what tells how it came about."""
        newest = {line["start"]: line for line in self.lines()}
        return {start: {key: line[key] for key in line if key != "revision"} for start, line in newest.items()}

    def scored_rows(self, window: str) -> list[int]:
        """Row ids that were scored for a window, sorted."""
        files = sorted((self.run_dir / "stream" / "scores" / window).glob("*.parquet"))
        return sorted(row for path in files for row in pq.ParquetFile(path).read(["row_id"])["row_id"].to_pylist())


def bring(stream, names):
    return [lambda name=name: stream.arrive(name) for name in names]


def publish(stream, *days):
    return [lambda day=day: stream.run.publish(day) for day in days]
