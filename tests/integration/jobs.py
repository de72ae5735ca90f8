"""Training jobs that are started beside a test, watched, and killed."""

import json
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import psutil

from rankmixer_dist.config import load_config

RANKS = 2
PATIENCE_S = 150.0
"""For a step of a test on a machine that has other things to do too."""


@dataclass(frozen=True)
class Run:
    """A run's config file and overrides, the first of which names it."""

    config: Path
    overrides: tuple[str, ...]

    @property
    def folder(self) -> Path:
        """The run directory."""
        return load_config(self.config, self.overrides).run_dir

    def named(self, name: str) -> "Run":
        """Another run that does the same."""
        return Run(self.config, (f"name={name}", *self.overrides[1:]))

    def arguments(self, script: str = "train") -> list[str]:
        """`launch/train.py` and its arguments."""
        return [f"launch/{script}.py", str(self.config), *self.overrides]

    def lines(self) -> int:
        """Complete lines of metrics.jsonl, which are the steps logged."""
        with suppress(FileNotFoundError):
            return (self.folder / "metrics.jsonl").read_bytes().count(b"\n")
        return 0

    def losses(self) -> list[tuple[int, float]]:
        """(step, loss) of each line of metrics.jsonl."""
        lines = map(json.loads, (self.folder / "metrics.jsonl").read_text().splitlines())
        return [(line["step"], line["loss"]) for line in lines]


@dataclass(frozen=True)
class Calm:
    """A run that nobody disturbed, and the seconds from the start of its ranks to its first step."""

    run: Run
    start_s: float


def a_run(small_config: Path, name: str, *, epochs: int, batch_size: int) -> Run:
    """A run over whole epochs that saves every 5 steps and writes down its rows."""
    settings = {"train.epochs": epochs, "loader.batch_size": batch_size, "train.max_steps": "null"}
    settings |= {"train.audit_rows": "true", "checkpoint.every": 5}
    return Run(small_config, (f"name={name}", *(f"{key}={value}" for key, value in settings.items())))


def torchrun(run: Run, max_restarts: int = 0) -> list[str]:
    """The command, for `launch.started`."""
    launcher = ["launch/torchrun.py", f"--nproc_per_node={RANKS}", f"--max-restarts={max_restarts}"]
    return [*launcher, *run.arguments()]


def until(condition: Callable[[], object], what: str, process=None) -> None:
    """Waits for something that must come, while `process` runs."""
    give_up = time.monotonic() + PATIENCE_S
    while not condition():
        assert time.monotonic() < give_up, f"waited in vain until {what}"
        assert process is None or process.poll() is None, f"ended with {process.poll()} before {what}"
        time.sleep(0.002)


def ranks_of(launcher) -> dict[int, psutil.Process]:
    """The ranks that a launcher has running now."""
    found = {}
    with suppress(psutil.NoSuchProcess):
        for child in psutil.Process(launcher.pid).children():
            with suppress(psutil.Error):  # gone meanwhile
                environ = child.environ()
                if "RANK" in environ:
                    found[int(environ["RANK"])] = child
    return found


def new_ranks(launcher, before: dict[int, psutil.Process] | None = None) -> dict[int, psutil.Process]:
    """All ranks, once they are there and none of those from before is among them."""
    found: dict[int, psutil.Process] = {}
    old = {rank.pid for rank in (before or {}).values()}

    def all_new() -> bool:
        found.clear()
        found.update(ranks_of(launcher))
        return len(found) == RANKS and not old & {rank.pid for rank in found.values()}

    until(all_new, "the launcher has started all ranks", launcher)
    return found


def finish(process, log: Path) -> None:
    """Waits for a process to end well."""
    code = process.wait(timeout=PATIENCE_S)
    assert code == 0, log.read_text()[-5000:]


def train_undisturbed(launch, run: Run, command: list[str], log: Path) -> Calm:
    """Trains to the end."""
    start = time.monotonic()
    with launch.started(*command, log=log) as process:
        until(run.lines, "a step is logged", process)
        start_s = time.monotonic() - start
        finish(process, log)
    return Calm(run, start_s)
