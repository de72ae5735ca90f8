"""Streaming evaluation of a real run, with Ray: its windows are evaluate.py's figures, whoever is killed meanwhile."""

import json
import os
import random
import shutil
import signal
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import numpy as np
import psutil
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from rankmixer_dist.config import RunConfig, load_config
from rankmixer_dist.errors import EXIT_PREEMPTED
from tests.conftest import ROOT
from tests.integration.jobs import PATIENCE_S, finish, until

pytestmark = [pytest.mark.slow, pytest.mark.ray, pytest.mark.timeout(900)]

EVALUATE_ALL = """
import json, shutil, sys
from rankmixer_dist.verbs.evaluate import run
from rankmixer_dist.config import load_config
config_path, folder, overrides, pairs = json.loads(sys.argv[1])
for split, step in pairs:
    config = load_config(config_path, [*overrides, f"eval.split={split}", f"eval.checkpoint=step-{step:08d}"])
    run(config)
    shutil.copytree(config.run_dir / "predictions", f"{folder}/{split}")
    shutil.copy(config.run_dir / "eval.json", f"{folder}/{split}.json")
"""


BATCH_JOB = {"SLURM_PROCID": "0", "SLURM_LOCALID": "0", "SLURM_NTASKS": "4"}
"""What SLURM sets for the script of a job of four tasks, which starts the evaluator with python."""


class Followed:
    """A run that is trained and followed, the folder where its shards arrive, and what was told of it."""

    def __init__(self, launch, config_path: Path, folder: Path, *overrides: str) -> None:
        self.incoming = folder / "incoming"
        self.incoming.mkdir()
        self.overrides = (f"runs={folder / 'runs'}", f"stream.shards={self.incoming}", *overrides)
        self.config: RunConfig = load_config(config_path, self.overrides)
        self.command = (str(config_path), *self.overrides)
        self._launch, self.folder, self._log = launch, folder, folder / "stream.log"

    @contextmanager
    def evaluator(self, *overrides: str) -> Iterator[psutil.Process]:
        """The evaluator beside the block, and none of its processes after it."""
        script = "launch/stream_evaluate.py"
        with self._launch.started(script, *self.command, *overrides, log=self._log, **BATCH_JOB) as process:
            yield process
            family = psutil.Process(process.pid).children(recursive=True) if process.poll() is None else []
        assert psutil.wait_procs(family, timeout=PATIENCE_S)[1] == []

    def log(self) -> str:
        return self._log.read_text()

    def arrive(self, *names: str, pause_s: float = 0.0) -> None:
        for name in names:
            time.sleep(pause_s)
            shutil.copy(self.config.data.prepared / name, self.incoming / ".aside")
            os.replace(self.incoming / ".aside", self.incoming / name)

    def shards(self, *splits: str) -> list[str]:
        return sorted(path.name for split in splits for path in self.config.data.prepared.glob(f"{split}-*.parquet"))

    def lines(self) -> list[dict]:
        path = self.config.run_dir / "stream_eval.jsonl"
        content = path.read_text() if path.exists() else ""
        return [json.loads(line) for line in content[: content.rfind("\n") + 1].splitlines()]

    def score_files(self) -> list[Path]:
        return sorted((self.config.run_dir / "stream" / "scores").glob("*/*.parquet"))

    def evaluate(self, steps: dict[str, int]) -> dict[str, dict]:
        """evaluate.py's eval.json of each split with the checkpoint of a step; predictions stay in the folder."""
        # Training has removed the older ones.
        run_dir = self.config.run_dir
        for pinned in (run_dir / "stream" / "checkpoints").iterdir():
            if not (run_dir / "checkpoints" / pinned.name).exists():
                shutil.copytree(pinned, run_dir / "checkpoints" / pinned.name)
        asked = json.dumps([self.command[0], str(self.folder), list(self.overrides), list(steps.items())])
        log = self.folder / "evaluate.log"
        with self._launch.started("-c", EVALUATE_ALL, asked, log=log) as process:
            finish(process, log)
        return {split: json.loads((self.folder / f"{split}.json").read_text()) for split in steps}


def actors_of(process) -> list[psutil.Process]:
    """The evaluator's Ray actors."""
    found = []
    for member in psutil.Process(process.pid).children(recursive=True):
        with suppress(psutil.NoSuchProcess):  # gone meanwhile
            if (member.cmdline() or [""])[0].startswith("ray::Worker"):
                found.append(member)
    return found


def read(paths: list[Path]) -> pa.Table:
    return pa.concat_tables(pq.ParquetFile(path).read() for path in paths).sort_by("row_id")


def follow_while_killing(launch, followed, train: list[str], names: list[str], last: str, *, pause_s: float) -> None:
    """Follows a run that is trained meanwhile, while shards come one by one; the last of them to a second start.

    Kills one of two actors that both have work, and then the evaluator.
    """
    third, log = len(names) // 3, followed.folder / "train.log"
    with (
        launch.started(*train, log=log) as training,
        followed.evaluator("stream.stop_after_idle_s=null") as evaluator,
    ):
        followed.arrive(*names[:third], pause_s=pause_s)
        until(followed.score_files, "something is scored", evaluator)
        until(lambda: len(actors_of(evaluator)) == 2, "both actors are up", evaluator)
        actors = actors_of(evaluator)
        for actor in actors:
            actor.suspend()
        followed.arrive(*names[third : 2 * third], pause_s=pause_s)
        time.sleep(0.5)  # both have work now
        actors[0].kill()
        actors[1].resume()
        before = len(followed.score_files())
        until(lambda: len(followed.score_files()) > before, "others work on", evaluator)
        followed.arrive(*names[2 * third :], pause_s=pause_s)
        finish(training, log)
        until(lambda: len(followed.score_files()) > before + third // 2, "more is scored", evaluator)
        family = psutil.Process(evaluator.pid).children(recursive=True)
        evaluator.kill()
        assert psutil.wait_procs(family, timeout=PATIENCE_S)[1] == []
    followed.arrive(last)
    with followed.evaluator("stream.actors=0") as evaluator:  # how it works changes nothing
        finish(evaluator, followed.folder / "stream.log")


def check_windows(followed: Followed, window_of_split: dict[str, str]) -> None:
    """Newest lines and scores are, to the last bit, what evaluate.py says of the day and the checkpoint."""
    newest = {line["start"]: line for line in followed.lines()}
    assert sorted(newest) == sorted(window_of_split.values())
    steps = {split: newest[start]["step"] for split, start in window_of_split.items()}
    assert sorted(steps.values()) == list(steps.values()) and len(set(steps.values())) == len(steps)
    for split, evaluated in followed.evaluate(steps).items():
        line = newest[window_of_split[split]]
        assert line["trained_until"] == line["start"]
        assert (line["scored"], line["rows"], line["duplicates"]) == (True, evaluated["rows"], 0)
        for task, figures in evaluated["tasks"].items():
            assert line["tasks"][task] == {name: figures[name] for name in figures if name != "reachable"}
        folder = window_of_split[split].replace("-", "").replace(":", "")
        scored = read([path for path in followed.score_files() if path.parent.name == folder])
        expected = read(sorted((followed.folder / split).glob("*.parquet")))
        for column in expected.column_names:
            np.testing.assert_array_equal(scored[column].to_numpy(), expected[column].to_numpy())
        rows = pa.concat_tables(pq.read_table(followed.config.data.prepared / name) for name in followed.shards(split))
        assert scored["row_id"].to_pylist() == sorted(rows["row_id"].to_pylist())


@pytest.mark.thorough
def test_windows_are_evaluated_exactly_while_training_goes_on_and_processes_are_killed(launch, days_config, tmp_path):
    # A day is over before anybody can look: nothing may be removed.
    followed = Followed(launch, days_config, tmp_path, "checkpoint.keep=10")
    days = ("day2", "day3", "day4", "test")
    *names, last = followed.shards(*days)
    names = names[::-2] + names[1::2]  # neither in order nor day by day
    follow_while_killing(launch, followed, ["launch/train.py", *followed.command], names, last, pause_s=0.0)
    check_windows(followed, {day: f"2026-01-0{place}T00:00:00Z" for place, day in enumerate(days, start=2)})
    assert "mean over windows" in followed.log()
    page = (followed.config.run_dir / "stream.html").read_text()
    assert page.count("closed</span>") == 4 and "Set aside" not in page
    assert list((followed.config.run_dir / "tensorboard" / "stream").glob("events*"))

    # What is done stays done; a second evaluator is refused; a signal ends one that waits for more.
    before = followed.lines()
    with followed.evaluator("stream.actors=0", "stream.stop_after_idle_s=null") as evaluator:
        until(lambda: "follows" in followed.log(), "it follows", evaluator)
        second = launch.python("launch/stream_evaluate.py", *followed.command)
        assert second.returncode == 2
        assert f"stream: process {evaluator.pid} on" in second.stderr and "evaluates here; stop it" in second.stderr
        evaluator.send_signal(signal.SIGTERM)
        assert evaluator.wait(PATIENCE_S) == EXIT_PREEMPTED
    assert "stopped: asked to stop; 0 of 4 windows are open; start it again to go on" in followed.log()
    assert followed.lines() == before


def test_wrong_input_is_told_in_one_line(launch, days_config, tmp_path, monkeypatch):
    def told(*overrides):
        command = (str(days_config), f"runs={tmp_path}", "stream.run_wait_s=0", *overrides)
        process = launch.python("launch/stream_evaluate.py", *command)
        assert process.returncode == 2 and "Traceback" not in process.stderr, process.stderr
        (line,) = [line for line in process.stderr.splitlines() if line.startswith("error: ")]
        return line

    assert "days: no run here; train it with launch/train.py first" in told()
    config = load_config(days_config, [f"runs={tmp_path}"])
    config.run_dir.mkdir()
    (config.run_dir / "config.yaml").write_text(config.to_yaml())
    assert f"stream.shards {tmp_path / 'none'}: no such folder" in told(f"stream.shards={tmp_path / 'none'}")
    assert "was trained with seed 1, not 2" in told("seed=2")
    assert "neither a share of a GPU nor a whole number" in told("stream.gpus_per_actor=1.5")
    monkeypatch.setenv("SLURM_STEP_NUM_TASKS", "2")  # srun -n 2
    assert "is started once, with python, but SLURM_STEP_NUM_TASKS is 2" in told()


def takes(process, number: signal.Signals) -> bool:
    """Whether a process has a handler of its own for a signal."""
    status = Path(f"/proc/{process.pid}/status").read_text()
    (caught,) = [line.split()[1] for line in status.splitlines() if line.startswith("SigCgt:")]
    return bool(int(caught, 16) >> (number - 1) & 1)


@pytest.mark.parametrize(("number", "when"), [(signal.SIGINT, "no run is there"), (signal.SIGTERM, "Ray starts")])
def test_a_signal_during_start_up_ends_it_in_one_line(launch, days_config, tmp_path, number, when):
    followed = Followed(launch, days_config, tmp_path)
    if when == "Ray starts":
        followed.config.run_dir.mkdir(parents=True)
        (followed.config.run_dir / "config.yaml").write_text(followed.config.to_yaml())

    def starting(evaluator) -> bool:
        family = psutil.Process(evaluator.pid).children()
        return when != "Ray starts" or any("gcs_server" in member.name() for member in family)

    with followed.evaluator() as evaluator:
        until(lambda: takes(evaluator, signal.SIGUSR1) and starting(evaluator), when, evaluator)
        evaluator.send_signal(number)
        assert evaluator.wait(PATIENCE_S) == EXIT_PREEMPTED, followed.log()
    said = [line for line in followed.log().splitlines() if not line.startswith("waits up to 60 s (stream.run_wait_s)")]
    assert said == ["stopped: asked to stop before it began to evaluate; start it again to go on"]


@pytest.mark.thorough
def test_seven_days_of_the_quickstart(launch, tmp_path):
    data = [f"source.path={tmp_path / 'raw'}", f"data.prepared={tmp_path / 'prepared'}", "data.shard_rows=4096"]
    sizes = ["source.rows=140000", "eval.batch_size=2048", "stream.batch_size=2048", "data.job=serial"]
    config_path = ROOT / "configs" / "quickstart_stream.yaml"
    prepared = launch.python("launch/preprocess.py", str(config_path), *data, *sizes)
    assert prepared.returncode == 0, prepared.stderr[-3000:]
    followed = Followed(launch, config_path, tmp_path, *data, *sizes)
    days = ("day2", "day3", "day4", "day5", "day6", "test")
    names = followed.shards(*days)
    random.Random(1).shuffle(names)
    train = ["launch/torchrun.py", "--nproc_per_node=2", "launch/train.py", *followed.command]
    follow_while_killing(launch, followed, train, names[1:], names[0], pause_s=1.0)
    check_windows(followed, {day: f"2026-01-0{place}T00:00:00Z" for place, day in enumerate(days, start=2)})
    two = launch.torchrun("launch/evaluate.py", *followed.command, ranks=2)
    assert two.returncode == 0, two.stderr[-3000:]
    scored = read([path for path in followed.score_files() if path.parent.name == "20260107T000000Z"])
    expected = read(sorted((followed.config.run_dir / "predictions").glob("*.parquet")))
    for column in expected.column_names:
        np.testing.assert_allclose(scored[column].to_numpy(), expected[column].to_numpy(), rtol=0, atol=1e-6)
