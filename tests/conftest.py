"""Fixtures that every folder of tests may use."""

import os
import re
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import psutil
import pytest
import yaml
from hypothesis import settings

from data_pipeline.preprocess import preprocess
from rankmixer_dist.config import load_config
from tests.warm import Warm

ROOT = Path(__file__).resolve().parents[1]
settings.register_profile("untimed", deadline=None)  # on a busy machine any example may take a second
settings.load_profile("untimed")
DAYS = ("train", "day2", "day3", "day4")
"""Splits of `days_config` that are trained on in turn; `test` is the day after."""


def pytest_addoption(parser: pytest.Parser) -> None:
    """`--thorough` runs what takes many minutes too."""
    parser.addoption("--thorough", action="store_true", help="run the tests that take many minutes too")


def pytest_configure(config: pytest.Config) -> None:
    """The ordinary suite works on the CPU, in this process too: without `-m cuda` it sees no GPU."""
    if hides_gpus(config):
        os.environ["CUDA_VISIBLE_DEVICES"] = ""


def hides_gpus(config: pytest.Config, devices: Path = Path("/dev")) -> bool:
    """Whether this machine has GPUs that nobody has asked for."""
    asked = re.search(r"(?<!not )\bcuda\b", config.getoption("-m") or "")
    return not asked and any(devices.glob("nvidia[0-9]*"))


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Thorough tests without `--thorough`, and those for GPUs that are hidden, are skipped and say so."""
    skipped = {}
    if not config.getoption("--thorough"):
        skipped["thorough"] = "takes many minutes; give --thorough to run it"
    if hides_gpus(config):
        skipped["cuda"] = "needs a CUDA device; give -m cuda, since the ordinary suite hides those of this machine"
    for item in items:
        for marker, reason in skipped.items():
            if item.get_closest_marker(marker):
                item.add_marker(pytest.mark.skip(reason=reason))


@pytest.fixture(scope="session")
def kuairand_folder() -> Path:
    """The KuaiRand-Pure files: $KUAIRAND_PURE, or the place where configs/kuairand_pure.yaml looks by default."""
    named = os.environ.get("KUAIRAND_PURE")
    folder = Path(named) if named else ROOT.parent / "shared" / "data" / "kuairand-pure"
    if not any(folder.glob("log_*.parquet")):
        pytest.skip(f"no KuaiRand-Pure files in {folder}; set KUAIRAND_PURE to their folder")
    return folder


@pytest.fixture(scope="session")
def small_config(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The YAML file of a short run on 3,000 synthetic rows, which are prepared; it logs every step."""
    folder = tmp_path_factory.mktemp("small")
    config = yaml.safe_load((ROOT / "configs" / "quickstart.yaml").read_text())
    # Blocks of ceil(5 / 4) rows leave none for the last of four ranks, beside tables of other widths.
    segment = {"rows": 5, "dim": 4}
    config["features"] = {"extends": str(ROOT / "configs" / config["features"]), "tables": {"segment": segment}}
    config["runs"] = str(folder / "runs")
    config["source"] |= {"path": str(folder / "raw"), "rows": 3000, "users": 60, "videos": 40}
    config["data"] |= {"prepared": str(folder / "prepared"), "row_group_rows": 64, "shard_rows": 1024, "job": "serial"}
    config["loader"] = {"batch_size": 128}
    config["train"] = {"epochs": 3, "max_steps": 50, "log_every": 1}
    config["sparse"] = {"lr": 0.05}
    config["dense"] = {"lr": 0.001, "clip_norm": 0.5, "schedule": {"warmup_steps": 5}}
    config["eval"] = {"batch_size": 128}
    path = folder / "small.yaml"
    path.write_text(yaml.safe_dump(config))
    preprocess(load_config(path), progress=False)
    return path


@pytest.fixture(scope="session")
def days_config(small_config: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The YAML file of a run that trains on four days in turn; 1,800 rows of five days are prepared, 128 a shard."""
    folder = tmp_path_factory.mktemp("days")
    config = yaml.safe_load(small_config.read_text())
    config |= {"name": "days", "runs": str(folder / "runs")}
    config["source"] |= {"path": str(folder / "raw"), "rows": 1800, "days": 5}
    days = [f"2026-01-0{day}T00:00:00Z" for day in range(1, 7)]
    splits = {name: {"start": days[day], "end": days[day + 1]} for day, name in enumerate((*DAYS, "test"))}
    config["data"] |= {"prepared": str(folder / "prepared"), "splits": splits, "row_group_rows": 32, "shard_rows": 128}
    config["train"] = {"split": list(DAYS), "log_every": 1}
    config["eval"] = {"batch_size": 64}
    config["stream"] = {"start": days[1], "batch_size": 64, "poll_s": 0.05, "stop_after_idle_s": 2.0}
    path = folder / "days.yaml"
    path.write_text(yaml.safe_dump(config))
    preprocess(load_config(path), progress=False)
    return path


class Launch:
    """Starts scripts as a person would, one thread a rank.

    Args:
        device: "cpu", which hides GPUs, or "cuda", which leaves them to be found.
    """

    def __init__(self, device: str = "cpu") -> None:
        self._device = device
        self._warm: Warm | None = None

    def python(self, script: Path | str, *arguments: str) -> subprocess.CompletedProcess[str]:
        """`python script arguments`."""
        return self._run([sys.executable, str(ROOT / script), *arguments])

    def torchrun(self, script: Path | str, *arguments: str, ranks: int) -> subprocess.CompletedProcess[str]:
        """`launch/torchrun.py --nproc_per_node ranks script arguments`."""
        launcher = [sys.executable, str(ROOT / "launch" / "torchrun.py"), f"--nproc_per_node={ranks}"]
        return self._run([*launcher, str(ROOT / script), *arguments])

    def deepspeed(self, script: Path | str, *arguments: str, ranks: int) -> subprocess.CompletedProcess[str]:
        """`deepspeed --num_gpus ranks script arguments`."""
        launcher = [sys.executable, "-m", "deepspeed.launcher.runner", f"--num_gpus={ranks}", "--master_addr=127.0.0.1"]
        return self._run([*launcher, str(ROOT / script), *arguments])

    def forked(self, script: Path | str, *arguments: str, ranks: int | None = None) -> subprocess.CompletedProcess[str]:
        """What `torchrun` does, or `python` without ranks, by processes that have loaded torch and its kin already.

        The return code is that of the first rank that failed.
        """
        if self._warm is None:
            self._warm = Warm(self._env)
        return self._warm.run(str(ROOT / script), arguments, ranks)

    def close(self) -> None:
        """Ends what was started for `forked`."""
        if self._warm is not None:
            self._warm.close()

    @contextmanager
    def started(self, *command: str, log: Path, **env: str) -> Iterator[subprocess.Popen[bytes]]:
        """`python command`, which runs beside the block, and not after it; what it says goes to `log`."""
        with log.open("wb") as file:
            process = subprocess.Popen(
                [sys.executable, *command],
                env=self._env | env,
                cwd=ROOT,
                stdin=subprocess.DEVNULL,
                stdout=file,
                stderr=file,
            )
        try:
            yield process
        finally:
            if process.poll() is None:
                family = [psutil.Process(process.pid), *psutil.Process(process.pid).children(recursive=True)]
                for member in family:
                    member.kill()
            process.wait()

    @property
    def _env(self) -> dict[str, str]:
        env = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT), "GLOO_SOCKET_IFNAME": "lo"}
        return env | ({"DS_ACCELERATOR": "cpu", "CUDA_VISIBLE_DEVICES": ""} if self._device == "cpu" else {})

    def _run(self, command: list[str]) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            command, env=self._env, stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=280, check=False
        )


@pytest.fixture(scope="session")
def launch() -> Iterator[Launch]:
    """Starts the verbs and other scripts in processes of their own."""
    started = Launch()
    yield started
    started.close()
