"""Fixtures that every folder of tests may use."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from data_pipeline.preprocess import preprocess
from rankmixer_dist.config import load_config

ROOT = Path(__file__).resolve().parents[1]


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
    config["features"] = str(ROOT / "configs" / config["features"])
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


class Launch:
    """Starts scripts as a person would, on this machine's CPU, one thread a rank."""

    def python(self, script: Path | str, *arguments: str) -> subprocess.CompletedProcess[str]:
        """`python script arguments`."""
        return self._run([sys.executable, str(ROOT / script), *arguments])

    def torchrun(self, script: Path | str, *arguments: str, ranks: int) -> subprocess.CompletedProcess[str]:
        """`torchrun --nproc_per_node ranks script arguments`."""
        launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone", f"--nproc_per_node={ranks}"]
        return self._run([*launcher, str(ROOT / script), *arguments])

    def deepspeed(self, script: Path | str, *arguments: str, ranks: int) -> subprocess.CompletedProcess[str]:
        """`deepspeed --num_gpus ranks script arguments`."""
        launcher = [sys.executable, "-m", "deepspeed.launcher.runner", f"--num_gpus={ranks}", "--master_addr=127.0.0.1"]
        return self._run([*launcher, str(ROOT / script), *arguments])

    def _run(self, command: list[str]) -> subprocess.CompletedProcess[str]:
        env = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT), "DS_ACCELERATOR": "cpu"}
        env |= {"CUDA_VISIBLE_DEVICES": "", "GLOO_SOCKET_IFNAME": "lo"}
        return subprocess.run(
            command, env=env, stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=280, check=False
        )


@pytest.fixture(scope="session")
def launch() -> Launch:
    """Starts the verbs and other scripts in processes of their own."""
    return Launch()
