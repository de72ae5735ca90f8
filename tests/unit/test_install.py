"""The installer's decisions, with a stand-in for Python that only writes down what it was asked."""

import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
CONSTRAINTS = "rankmixer_dist/environment/constraints.txt"

STAND_IN = """#!/usr/bin/env bash
# Stands in for python: answers what the installer asks, makes a virtual environment of itself, notes the rest.
echo "$*" >>"$CALLS"
case "$1 ${2:-}" in
    "-c "*version_info*) echo "${FAKE_VERSION:-3.11.9}" ;;
    "-c "*_base_executable*) echo "$FAKE_PYTHON" ;;
    "-m venv") mkdir -p "$3/bin" && cp "$FAKE_PYTHON" "$3/bin/python" ;;
    "-m pip")
        if [[ -n ${SLEEP_ON:-} && "$*" == *"$SLEEP_ON"* ]]; then exec sleep 60; fi
        if [[ "$*" == *"${FAIL_ON:-nothing fails}"* ]]; then echo "ERROR: ${FAIL_WITH:-}"; exit 1; fi
        ;;
    "- "*) exec "$REAL_PYTHON" "$@" ;;
    *doctor.py*) exit "${DOCTOR_CODE:-0}" ;;
esac
"""


class Installer:
    """A small copy of the repository with a stand-in for Python."""

    def __init__(self, folder: Path) -> None:
        self.root = folder / "tree"
        self.venv = self.root / ".venv"
        self.calls_file = folder / "calls"
        self.python = folder / "fake_python"
        self.python.write_text(STAND_IN)
        self.python.chmod(0o755)
        for name in ("launch/install.sh", "pyproject.toml", CONSTRAINTS):
            (self.root / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(ROOT / name, self.root / name)

    def start(self, *arguments: str, **environment: str) -> subprocess.Popen[str]:
        """Starts the installer in its own process group; `calls` then holds what Python is asked in this run."""
        self.calls_file.write_text("")
        names = {"PYTHON": self.python, "FAKE_PYTHON": self.python, "CALLS": self.calls_file, "RANKMIXER_DEVICE": "cpu"}
        values = {name: str(value) for name, value in names.items()} | {"REAL_PYTHON": sys.executable} | environment
        return subprocess.Popen(
            ["bash", "launch/install.sh", *arguments],
            cwd=self.root,
            env=os.environ | values,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            start_new_session=True,
            # Whoever runs the tests in the background has interrupts ignored, and a shell cannot trap what is.
            preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
        )

    def run(self, *arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
        """Runs the installer to its end."""
        process = self.start(*arguments, **environment)
        out, err = process.communicate(timeout=60)
        return subprocess.CompletedProcess(process.args, process.returncode, out, err)

    @property
    def calls(self) -> list[str]:
        return self.calls_file.read_text().splitlines()

    @property
    def pip_calls(self) -> list[str]:
        return [call for call in self.calls if call.startswith("-m pip")]

    @property
    def made_venv(self) -> bool:
        return any(call.startswith("-m venv") for call in self.calls)

    @property
    def ran_doctor(self) -> bool:
        return any(call.endswith("launch/doctor.py") for call in self.calls)


@pytest.fixture
def installer(tmp_path: Path) -> Installer:
    return Installer(tmp_path)


def test_a_fresh_install_follows_the_pins(installer: Installer) -> None:
    run = installer.run()
    assert run.returncode == 0, run.stderr
    build, bare, main, source, project = installer.pip_calls
    assert "setuptools==" in build
    assert "--no-deps" in bare and "torchrec==" in bare and "fbgemm-gpu-cpu==" in bare
    assert "torch==" in main and "ray[data]==" in main and "pytest==" in main
    assert "torchrec" not in main and "fbgemm" not in main and "deepspeed" not in main
    assert "--no-build-isolation" in source and "deepspeed==" in source
    assert project.endswith(f"--no-deps --no-build-isolation --editable {installer.root}")
    assert installer.made_venv and installer.ran_doctor
    stages = [line for line in run.stdout.splitlines() if line.endswith(" s")]
    assert len(stages) == 8  # one a stage, and the total


def test_a_cuda_machine_gets_the_cuda_build(installer: Installer) -> None:
    assert installer.run(RANKMIXER_DEVICE="cuda").returncode == 0
    assert "fbgemm-gpu==" in installer.pip_calls[1]
    assert "fbgemm-gpu-cpu" not in "".join(installer.pip_calls)


def test_nothing_is_done_twice(installer: Installer) -> None:
    installer.run()
    run = installer.run()
    assert (run.returncode, run.stdout) == (0, "install: up to date (cpu)\n")
    assert not installer.pip_calls and not installer.made_venv and not installer.ran_doctor
    assert installer.run("--check").returncode == 0
    assert installer.ran_doctor and not installer.pip_calls


@pytest.mark.parametrize("name", ["pyproject.toml", CONSTRAINTS])
def test_changed_pins_are_installed_into_what_is_there(name: str, installer: Installer) -> None:
    installer.run()
    (installer.root / name).open("a").write("\n# changed\n")
    assert installer.run().returncode == 0
    assert installer.pip_calls and not installer.made_venv


def test_ctrl_c_says_what_to_do_next(installer: Installer) -> None:
    process = installer.start(SLEEP_ON="torch==")
    deadline = time.monotonic() + 30
    while not any("torch==" in call for call in installer.calls) and time.monotonic() < deadline:
        time.sleep(0.02)
    os.killpg(process.pid, signal.SIGINT)
    out, err = process.communicate(timeout=30)
    assert process.returncode == 130, out
    assert "install: interrupted; run this again" in err
    assert "the last install was interrupted" in installer.run().stdout
    assert installer.made_venv


def test_a_failed_install_starts_over(installer: Installer) -> None:
    run = installer.run(FAIL_ON="deepspeed", FAIL_WITH="Connection refused")
    assert run.returncode == 1
    assert "deepspeed, from source" in run.stdout.splitlines()[-1]
    assert "pip cannot reach its package index" in run.stderr
    (installer.venv / "half").touch()
    run = installer.run()
    assert run.returncode == 0
    assert "the last install was interrupted" in run.stdout
    assert installer.made_venv and not (installer.venv / "half").exists()


@pytest.mark.parametrize(
    ("words", "advice"),
    [
        ("No matching distribution found for torch", "does not have a pinned version"),
        (
            "Retrying after connection broken by 'NewConnectionError'\n"
            "ERROR: Could not find a version that satisfies the requirement torch==2.13.0 (from versions: none)\n"
            "ERROR: No matching distribution found for torch==2.13.0",
            "pip cannot reach its package index",
        ),
        (
            "Retrying after connection broken by 'ReadTimeoutError'\n"
            "ERROR: Could not find a version that satisfies the requirement torch==2.13.0 (from versions: 2.9.0)",
            "does not have a pinned version",
        ),
        ("/usr/bin/python3.13: No module named venv", "cannot make virtual environments"),
        ("OSError: [Errno 28] No space left on device", "the disk is full"),
        ("error: something else", "the whole log is in .venv/install.log"),
    ],
)
def test_a_failure_says_what_to_do(words: str, advice: str, installer: Installer) -> None:
    run = installer.run(FAIL_ON="torch==", FAIL_WITH=words)
    assert run.returncode == 1
    assert f"  | ERROR: {words.splitlines()[0]}" in run.stderr
    assert advice in run.stderr


@pytest.mark.parametrize(
    "change", [{"FAKE_VERSION": "3.11.10"}, {"RANKMIXER_DEVICE": "cuda"}], ids=["python", "device"]
)
def test_another_python_or_device_starts_over(change: dict[str, str], installer: Installer) -> None:
    installer.run()
    (installer.venv / "old").touch()
    assert installer.run(**change).returncode == 0
    assert installer.made_venv and not (installer.venv / "old").exists()


def test_the_environments_own_python_makes_it_anew(installer: Installer) -> None:
    installer.run()
    run = installer.run(PYTHON=str(installer.venv / "bin" / "python"), RANKMIXER_DEVICE="cuda")
    assert run.returncode == 0, run.stderr
    assert installer.made_venv


def test_a_folder_may_have_a_space_in_its_name(tmp_path: Path) -> None:
    folder = tmp_path / "a folder"
    folder.mkdir()
    installer = Installer(folder)
    run = installer.run()
    assert run.returncode == 0, run.stderr
    assert installer.pip_calls[-1].endswith(f"--editable {installer.root}")
    assert installer.run().stdout == "install: up to date (cpu)\n"


def test_an_environment_that_moved_starts_over(installer: Installer) -> None:
    installer.run()
    installer.root = installer.root.rename(installer.root.with_name("moved"))
    assert installer.run().returncode == 0
    assert installer.made_venv


def test_an_environment_that_somebody_made_by_hand_is_never_removed(installer: Installer) -> None:
    (installer.venv / "bin").mkdir(parents=True)
    shutil.copy(installer.python, installer.venv / "bin" / "python")
    (installer.venv / "mine").touch()
    assert installer.run().returncode == 0
    assert installer.pip_calls and not installer.made_venv
    for change in ({"RANKMIXER_DEVICE": "cuda"}, {"FAKE_VERSION": "3.11.10"}):
        run = installer.run(**change)
        assert run.returncode == 1
        assert "this script did not make it" in run.stderr
    (installer.venv / "install.running").touch()
    assert installer.run().returncode == 1
    assert (installer.venv / "mine").exists()


def test_the_doctor_comes_back_until_it_finds_nothing_bad(installer: Installer) -> None:
    run = installer.run(DOCTOR_CODE="1")
    assert run.returncode == 1
    assert "--check" in run.stderr
    assert installer.run(DOCTOR_CODE="1").returncode == 1
    assert installer.ran_doctor and not installer.pip_calls
    assert installer.run().returncode == 0
    assert installer.run().stdout == "install: up to date (cpu)\n"


@pytest.mark.parametrize(
    ("environment", "told"),
    [
        ({"PYTHON": "no-such-python"}, "no-such-python is not there or does not run"),
        ({"FAKE_VERSION": "3.10.12"}, "Python 3.11, 3.12, 3.13 or 3.14 is needed, but"),
        ({"RANKMIXER_DEVICE": "tpu"}, "RANKMIXER_DEVICE is 'tpu'; it must be cpu or cuda"),
    ],
)
def test_what_cannot_work_is_told_before_anything_is_made(
    environment: dict[str, str], told: str, installer: Installer
) -> None:
    run = installer.run(**environment)
    assert run.returncode == 1
    assert told in run.stderr
    assert not installer.venv.exists()


class Interpreters:
    """Stand-ins for Python in folders of a PATH, none of which the machine's own Python is on."""

    def __init__(self, installer: Installer, folder: Path) -> None:
        self._installer, self._folder = installer, folder
        tools = folder / "tools"
        tools.mkdir()
        needed = "bash cat cp date dirname env flock grep head mkdir rm sed sha256sum sleep tail touch uname"
        for name in needed.split():
            (tools / name).symlink_to(shutil.which(name) or name)

    def add(self, where: str, name: str, version: str | None, *, makes_venvs: bool = True) -> Path:
        """One of a version, or a shim that does not run; without `makes_venvs` as Debian's without python3-venv."""
        path = self._folder / where / name
        path.parent.mkdir(exist_ok=True)
        answers = f"export FAKE_VERSION={version} FAKE_PYTHON={path}\n"
        if version is None:
            answers = "echo 'pyenv: command not found' >&2; exit 127\n"
        if not makes_venvs:
            answers += 'if [[ "$*" == *ensurepip* || "$1 $2" == "-m venv" ]]; then echo no ensurepip; exit 1; fi\n'
        path.write_text(STAND_IN.replace("bash\n", "bash\n" + answers, 1))
        path.chmod(0o755)
        return path

    def install(self, *folders: str) -> subprocess.CompletedProcess[str]:
        """Runs the installer with these folders on the PATH."""
        path = ":".join(str(self._folder / name) for name in (*folders, "tools"))
        return self._installer.run(PATH=path, PYTHON="")

    @property
    def used(self) -> str:
        """The version in the stamp of what was installed."""
        return (self._installer.venv / "install.stamp").read_text().partition(",")[0]


@pytest.fixture
def interpreters(installer: Installer, tmp_path: Path) -> Interpreters:
    return Interpreters(installer, tmp_path)


@pytest.mark.parametrize(
    ("there", "chosen"),
    [
        ({"python3.11": "3.11.2", "python3.13": "3.13.5", "python3": "3.11.2"}, "3.13.5"),
        ({"python3.14": "3.14.0", "python3.12": "3.12.3"}, "3.14.0"),
        ({"python3": "3.12.3"}, "3.12.3"),
        ({"python": "3.11.9", "python3": "3.10.1"}, "3.11.9"),
        ({"python3.15": "3.15.0", "python3": "3.15.0", "python3.11": "3.11.2"}, "3.11.2"),
        ({"python3.14": None, "python3.12": None, "python3.11": "3.11.7"}, "3.11.7"),  # shims
        ({"python3.13": "3.10.1", "python3": "3.12.3"}, "3.12.3"),  # a name that lies
    ],
)
def test_the_newest_python_that_runs_is_taken(
    there: dict[str, str | None], chosen: str, interpreters: Interpreters
) -> None:
    for name, version in there.items():
        interpreters.add("bin", name, version)
    run = interpreters.install("bin")
    assert run.returncode == 0, run.stderr
    assert interpreters.used == f"Python {chosen}"
    assert f"virtual environment of Python {chosen}" in run.stdout


def test_a_shim_does_not_hide_the_python_behind_it(interpreters: Interpreters) -> None:
    interpreters.add("shims", "python3.13", None)
    interpreters.add("bin", "python3.13", "3.13.5")
    interpreters.add("bin", "python3.11", "3.11.2")
    assert interpreters.install("shims", "bin").returncode == 0
    assert interpreters.used == "Python 3.13.5"


def test_a_python_that_cannot_make_environments_comes_last(interpreters: Interpreters) -> None:
    interpreters.add("bin", "python3.13", "3.13.5", makes_venvs=False)
    run = interpreters.install("bin")
    assert run.returncode == 1
    assert "apt-get install python3.13-venv" in run.stderr
    interpreters.add("bin", "python3.12", "3.12.3")
    assert interpreters.install("bin").returncode == 0
    assert interpreters.used == "Python 3.12.3"


def test_no_python_that_would_do(installer: Installer, interpreters: Interpreters) -> None:
    run = interpreters.install()
    assert run.returncode == 1
    assert "Python 3.11, 3.12, 3.13 or 3.14 is needed, and none is on the PATH." in run.stderr
    interpreters.add("bin", "python3", "3.10.12")
    run = interpreters.install("bin")
    assert run.returncode == 1
    assert "none is on the PATH (python3 is 3.10.12)." in run.stderr
    assert "apt-get install python3 python3-venv" in run.stderr
    assert not installer.venv.exists()


def test_an_environment_keeps_its_python_when_a_newer_one_comes(interpreters: Interpreters) -> None:
    interpreters.add("bin", "python3.11", "3.11.2")
    interpreters.install("bin")
    interpreters.add("bin", "python3.14", "3.14.0")
    assert interpreters.install("bin").stdout == "install: up to date (cpu)\n"


def test_an_environment_whose_python_is_gone_is_made_anew(installer: Installer, interpreters: Interpreters) -> None:
    interpreters.add("bin", "python3.11", "3.11.2")
    interpreters.install("bin")
    interpreters.add("bin", "python3.13", "3.13.5")
    (installer.venv / "bin" / "python").unlink()  # as after the upgrade of a system
    assert interpreters.install("bin").returncode == 0
    assert interpreters.used == "Python 3.13.5"


@pytest.mark.parametrize(
    ("build", "device", "told"), [("'13.0'", "cpu", True), ("'13.0'", "cuda", False), ("None", "cpu", False)]
)
def test_the_cuda_build_of_torch_on_a_machine_without_a_gpu_is_told(
    build: str, device: str, told: bool, installer: Installer
) -> None:
    torch = installer.venv / "lib" / "python3.13" / "site-packages" / "torch"
    torch.mkdir(parents=True)
    (torch / "version.py").write_text(f"cuda: Optional[str] = {build}\n")
    (installer.venv / "bin").mkdir()
    shutil.copy(installer.python, installer.venv / "bin" / "python")
    run = installer.run(RANKMIXER_DEVICE=device)
    assert run.returncode == 0, run.stderr
    assert ("torch is its CUDA build" in run.stdout) == told


def test_the_packages_of_an_image_come_before_the_project(installer: Installer) -> None:
    run = installer.run("--packages")
    assert run.returncode == 0, run.stderr
    assert len(installer.pip_calls) == 4 and not any("--editable" in call for call in installer.pip_calls)
    assert not installer.ran_doctor
    assert installer.run("--packages").stdout == "install: up to date (cpu)\n"
    assert installer.run().returncode == 0
    assert "--editable" in installer.pip_calls[-1] and installer.ran_doctor and not installer.made_venv
    for arguments in ((), ("--packages",)):
        assert installer.run(*arguments).stdout == "install: up to date (cpu)\n"


def test_an_unknown_argument_is_refused(installer: Installer) -> None:
    assert installer.run("--chek").returncode == 2
