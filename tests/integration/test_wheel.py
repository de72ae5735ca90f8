"""What a stranger installs: the wheel in an environment of its own, and a run from another folder."""

import os
import shutil
import subprocess
import sys
import sysconfig
import tomllib
import zipfile
from pathlib import Path

import pytest
import yaml

from rankmixer_dist.config import load_config
from rankmixer_dist.verbs import VERBS
from tests.conftest import ROOT

VERSION = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["version"]
SOURCES = ("pyproject.toml", "README.md", "LICENSE", "rankmixer_dist", "data_pipeline")


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Built from a copy of the tree, in which building leaves folders behind."""
    tree, out = tmp_path_factory.mktemp("tree"), tmp_path_factory.mktemp("wheel")
    for name in SOURCES:
        if (ROOT / name).is_dir():
            shutil.copytree(ROOT / name, tree / name, ignore=shutil.ignore_patterns("__pycache__"))
        else:
            shutil.copy(ROOT / name, tree)
    run(sys.executable, "-m", "pip", "wheel", ".", "--no-deps", "--no-build-isolation", f"--wheel-dir={out}", cwd=tree)
    (built,) = out.iterdir()
    return built


@pytest.fixture(scope="module")
def installed(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The programs of an environment that holds the wheel, and sees the packages of this one but not the project."""
    folder = tmp_path_factory.mktemp("environment")
    run(sys.executable, "-m", "venv", "--without-pip", str(folder), cwd=folder)
    programs = folder / "bin"
    asked = (programs / "python", "-c", "import sysconfig; print(sysconfig.get_path('purelib'))")
    packages = Path(run(*map(str, asked), cwd=folder).stdout.strip())
    # A folder named here is searched, but the project's own link in it is not followed.
    (packages / "others.pth").write_text(sysconfig.get_path("purelib") + "\n")
    pip = (sys.executable, "-m", "pip", "--python", str(programs / "python"))
    run(*pip, "install", "--no-deps", "--no-index", str(wheel), cwd=folder)
    return programs


@pytest.fixture(scope="module")
def config(small_config: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The YAML file of a run in a folder of its own, with its features beside it, and everything else to be made.

    Packages of the same names lie there, as in an old checkout; no verb may load them.
    """
    folder = tmp_path_factory.mktemp("elsewhere")
    for package in ("rankmixer_dist", "data_pipeline"):
        (folder / package).mkdir()
        (folder / package / "__init__.py").write_text(f"raise SystemExit('another {package}')\n")
    values = yaml.safe_load(small_config.read_text())
    features = load_config(small_config).features.model_dump(mode="json", exclude_unset=True)
    (folder / "features.yaml").write_text(yaml.safe_dump(features, sort_keys=False))
    values |= {"name": "stranger", "runs": "runs", "features": "features.yaml"}
    values["source"] |= {"path": "raw", "rows": 600}
    values["data"] |= {"prepared": "prepared"}
    values["train"] = {"epochs": 1, "max_steps": 3, "log_every": 1}
    path = folder / "stranger.yaml"
    path.write_text(yaml.safe_dump(values, sort_keys=False))
    return path


def run(*command: str, cwd: Path, code: int = 0) -> subprocess.CompletedProcess[str]:
    """A command in a folder, without what leads Python to this tree."""
    env = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    env |= {"OMP_NUM_THREADS": "1", "DS_ACCELERATOR": "cpu", "CUDA_VISIBLE_DEVICES": "", "GLOO_SOCKET_IFNAME": "lo"}
    env |= {"PIP_DISABLE_PIP_VERSION_CHECK": "1"}
    ended = subprocess.run(command, cwd=cwd, env=env, capture_output=True, text=True, timeout=280, check=False)
    assert ended.returncode == code, ended.stdout + ended.stderr
    return ended


def test_the_wheel_holds_every_file_of_its_packages_and_says_what_it_is(wheel: Path) -> None:
    with zipfile.ZipFile(wheel) as file:
        names = set(file.namelist())
        (about,) = (file.read(name).decode() for name in names if name.endswith(".dist-info/METADATA"))
    for package in ("rankmixer_dist", "data_pipeline"):
        kept = {str(path.relative_to(ROOT)) for path in (ROOT / package).rglob("*") if path.is_file()}
        assert not {name for name in kept if "__pycache__" not in name} - names
        assert f"{package}/py.typed" in names
    assert not [name for name in names if name.startswith(("tests/", "launch/"))]
    assert "License-Expression: Apache-2.0\n" in about
    assert [name for name in names if name.endswith("licenses/LICENSE")]
    assert f"\nversion: {VERSION}\n" in (ROOT / "CITATION.cff").read_text()
    # Its metadata asks for fbgemm's CUDA build, which a machine without a driver cannot load.
    assert [line for line in about.splitlines() if line.startswith("Requires-Dist: torchrec")] == [
        'Requires-Dist: torchrec==1.8.0; extra == "cuda"'
    ]


def test_the_command_names_every_verb_and_itself(installed: Path, config: Path) -> None:
    rankmixer, folder = str(installed / "rankmixer"), config.parent
    shown = run(rankmixer, "--help", cwd=folder).stdout
    assert [line.split()[0] for line in shown.splitlines() if line.split()[:1] and line.split()[0] in VERBS] == [*VERBS]
    files = {path.stem for path in (ROOT / "rankmixer_dist" / "verbs").glob("*.py")} - {"__init__", "main"}
    assert files == {*VERBS}
    assert run(rankmixer, "--version", cwd=folder).stdout == f"rankmixer_dist {VERSION}\n"
    assert "did you mean 'train'?" in run(rankmixer, "trian", cwd=folder, code=2).stderr
    assert run(rankmixer, cwd=folder, code=2).stderr == shown
    of_train = run(rankmixer, "train", "--help", cwd=folder).stdout
    assert of_train.startswith("usage: rankmixer train [-h] config") and "launch/" not in of_train
    assert "rankmixer torchrun --nproc_per_node 2 train configs/quickstart.yaml\n" in of_train
    no_run = run(rankmixer, "evaluate", config.name, "name=none", cwd=folder, code=2).stderr
    assert run(rankmixer, "bench", "--what", "loader", cwd=folder, code=2).stderr.endswith("; give --config\n")
    assert no_run == "error: runs/none: no run here; train it with rankmixer train first\n"


def test_a_verb_loads_itself_alone(installed: Path, config: Path) -> None:
    script = "import sys\nfrom rankmixer_dist.verbs.main import run\n"
    script += "try:\n    run(['torchrun'])\nexcept SystemExit:\n    pass\n"
    script += (
        "print([name for name in sys.modules if name.startswith('rankmixer_dist.verbs.')], 'numpy' in sys.modules)"
    )
    shown = run(str(installed / "python"), "-P", "-c", script, cwd=config.parent).stdout
    assert shown == "['rankmixer_dist.verbs.main', 'rankmixer_dist.verbs.torchrun'] False\n"


@pytest.mark.ray
def test_a_run_from_another_folder(installed: Path, config: Path) -> None:
    rankmixer, folder = str(installed / "rankmixer"), config.parent
    where = "import rankmixer_dist, data_pipeline; print(rankmixer_dist.__file__, data_pipeline.__file__)"
    of_package, of_data = run(str(installed / "python"), "-P", "-c", where, cwd=folder).stdout.split()
    assert Path(of_package).is_relative_to(installed.parent) and Path(of_data).is_relative_to(installed.parent)
    assert "dense part" in run(rankmixer, "plan", config.name, cwd=folder).stdout
    run(rankmixer, "preprocess", config.name, "--quiet", "data.job=ray", cwd=folder)
    run(rankmixer, "torchrun", "--nproc_per_node=2", "train", config.name, cwd=folder)
    shown = run(rankmixer, "evaluate", config.name, cwd=folder).stdout
    assert "report: runs/stranger/report.html" in shown
    report = (folder / "runs" / "stranger" / "report.html").read_text()
    assert "<style" in report and "<svg" in report
