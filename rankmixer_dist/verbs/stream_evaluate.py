"""Follows a training run and the log: each window of time is scored by weights that have seen nothing of it."""

import os
import signal
import time
from collections.abc import Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING, Any

from rich.table import Table

from data_pipeline.reading import find_prepared
from rankmixer_dist.command_line import config_parser, console, parse_config
from rankmixer_dist.config import RunConfig
from rankmixer_dist.errors import Preempted, UserError
from rankmixer_dist.metrics import mean_over_windows
from rankmixer_dist.small_file import require_place
from rankmixer_dist.there import is_folder, is_there

if TYPE_CHECKING:
    from data_pipeline.streaming.state import State
    from data_pipeline.streaming.worker import Pool

USAGE = """\
python launch/stream_evaluate.py configs/quickstart_stream.yaml        (while launch/train.py trains the same config)
python launch/stream_evaluate.py configs/quickstart_stream.yaml stream.shards=incoming stream.window_hours=1

Started once, with python; stream.actors says how many processes score. Follows runs/<name>/checkpoints/ and the Parquet
shards of stream.shards (or of data.prepared) and writes into the run directory stream_eval.jsonl, a line a window;
stream.html, which reloads itself; tensorboard/stream/; and stream/, from which a next start goes on. SIGTERM, SIGUSR1
and Ctrl-C end it with exit code 75: start it again to go on.
"""

_SIGNALS = (signal.SIGTERM, signal.SIGUSR1, signal.SIGINT)
_PROCESSES = ("WORLD_SIZE", "SLURM_STEP_NUM_TASKS")
"""How many processes torchrun, deepspeed and srun have started. Not SLURM_NTASKS, which is the whole job's outside of
srun: one process that a batch script starts with python is one."""


def main(arguments: list[str]) -> None:
    """Parses the command line and evaluates."""
    run(parse_config(config_parser("stream_evaluate", __doc__, USAGE), arguments))


def run(config: RunConfig) -> None:
    """Opens the data and the run, starts the actors and follows until the stream ends or a signal comes."""
    from rankmixer_dist.train.run_dir import in_runs_order

    stop = _Stop()
    for name in _PROCESSES:
        if os.environ.get(name, "1") not in ("0", "1"):
            raise UserError(
                f"stream_evaluate.py is started once, with python, but {name} is {os.environ[name]}; stream.actors "
                "says how many processes score"
            )
    if not config.stream.gpus_per_actor:  # before anything looks for them
        os.environ["CUDA_VISIBLE_DEVICES"] = ""
    find_prepared(config, config.train.splits)  # before the wait for a run that needs them too
    follow = config.stream.shards or config.data.prepared
    if not is_folder(follow):
        raise UserError(f"stream.shards {follow}: no such folder; make it, or name the one where shards arrive")
    require_place(config.run_dir, "runs")
    run_dir = _followed_run(config, stop)
    config = in_runs_order(config)
    with ExitStack() as held:
        _follow(config, run_dir, follow, stop, held)


def _follow(config: RunConfig, run_dir: Path, follow: Path, stop: "_Stop", held: ExitStack) -> None:
    from data_pipeline.manifest import read_manifest
    from data_pipeline.streaming.checkpoints import Pins
    from data_pipeline.streaming.windows import WindowPlan
    from rankmixer_dist.train.following import FollowedRun
    from rankmixer_dist.train.run_dir import only_job

    stream, plan, folder = config.stream, WindowPlan.of(config), run_dir / "stream"
    held.enter_context(only_job(folder, "evaluates"))
    manifest = read_manifest(config.data.prepared, config.features)
    training = FollowedRun(config, {split: manifest.rows(split) for split in config.train.splits})
    pins = Pins(folder / "checkpoints", training.describe)
    # Torch and its kin take seconds, and Ray as many: training may remove a checkpoint meanwhile.
    with pins.pinning(training, plan.start_ms, stream.poll_s):
        from data_pipeline.streaming.evaluator import Evaluator
        from data_pipeline.streaming.shown import Shown
        from data_pipeline.streaming.state import State
        from rankmixer_dist.train.scorer import OpenScorer

        stop.check()
        state = State(run_dir, folder, plan)
        held.callback(state.close)
        make_scorer = OpenScorer(config, stream.batch_size)
        with stop.while_ray_starts():
            pool = held.enter_context(_pool(config, (make_scorer, config.features, stream.batch_size, plan)))
        shown = held.enter_context(Shown(run_dir, config.name, plan, state, refresh_s=stream.refresh_s))
    expected = None
    if stream.shards is None:
        expected = {shard.path: shard.checksum for shards in manifest.splits.values() for shard in shards}
    shown.say(f"follows {follow} and {run_dir / 'checkpoints'} with {pool.size} workers; {run_dir / 'stream.html'}")
    evaluator = Evaluator(stream, state, plan, training, pool, pins, shown, shards=follow.resolve(), expected=expected)
    ended = evaluator.run(stop.asked)
    shown.write_page(state, reading=0, replaced=pool.replaced, ended=ended)
    if not ended:
        windows = state.windows()
        left = sum(not state.is_told(window) for window in windows)
        raise Preempted(f"asked to stop; {left} of {len(windows)} windows are open; start it again to go on")
    show(state)


def _pool(config: RunConfig, worker: tuple[Any, ...]) -> "AbstractContextManager[Pool]":
    from data_pipeline.streaming.actors import ActorPool
    from data_pipeline.streaming.worker import SerialPool, Worker

    if not config.stream.actors:
        return SerialPool(Worker(*worker))
    return ActorPool(worker, actors=config.stream.actors, gpus_per_actor=config.stream.gpus_per_actor)


class _Stop:
    """Whether a signal asked to stop."""

    def __init__(self) -> None:
        self._asked = False
        self._listen()

    def asked(self) -> bool:
        return self._asked

    def check(self) -> None:
        """For the time before anything is evaluated.

        Raises:
            Preempted: a signal asked to stop.
        """
        if self._asked:
            raise Preempted("asked to stop before it began to evaluate; start it again to go on")

    @contextmanager
    def while_ray_starts(self) -> Iterator[None]:
        """Ray takes SIGTERM for itself when it starts, and exits; after the block it is taken back. Ends as `check`."""
        try:
            yield
        except SystemExit:
            self._asked = True
        finally:
            self._listen()
        self.check()

    def _listen(self) -> None:
        for number in _SIGNALS:
            signal.signal(number, self._on_signal)

    def _on_signal(self, number: int, frame: FrameType | None) -> None:
        self._asked = True


def _followed_run(config: RunConfig, stop: _Stop) -> Path:
    """The run's directory, which training that was started a moment ago may have yet to make."""
    from rankmixer_dist.train.run_dir import require_run

    give_up = time.monotonic() + config.stream.run_wait_s
    if not is_there(config.run_dir / "config.yaml"):
        print(
            f"waits up to {config.stream.run_wait_s:g} s (stream.run_wait_s) for {config.run_dir} to begin", flush=True
        )
    while not is_there(config.run_dir / "config.yaml") and time.monotonic() < give_up:
        stop.check()
        time.sleep(min(0.5, config.stream.poll_s))
    stop.check()
    return require_run(config)


def show(state: "State") -> None:
    """Prints AUC and UAUC of every window, and their mean over the windows."""
    lines = [state.told[window] for window in state.windows() if window in state.told]
    scored = [line for line in lines if line["scored"]]
    tasks = list(dict.fromkeys(task for line in scored for task in line["tasks"]))
    table = Table(title=f"{len(scored)} of {len(lines)} windows scored")
    for column in ("window", "rows", "step", *(f"{task} {metric}" for task in tasks for metric in ("AUC", "UAUC"))):
        table.add_column(column, justify="left" if column == "window" else "right")
    for line in lines:
        values = [line["tasks"].get(task, {}).get(name) for task in tasks for name in ("auc", "uauc")]
        step = "–" if line["step"] is None else str(line["step"])
        table.add_row(line["start"], f"{line['rows']:,}", step, *map(_text, values))
    means = mean_over_windows(line["tasks"] for line in scored)
    of_mean = [value for task in tasks for value in (means[task]["auc"], means[task]["uauc"])]
    table.add_row("mean over windows", "", "", *map(_text, of_mean))
    console(width=120).print(table)


def _text(value: float | None) -> str:
    return "–" if value is None else f"{value:.4f}"
