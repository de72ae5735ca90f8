"""The shell verbs: syntax, and the installer's decisions, with a stand-in for Python that only writes down what it was
asked; and the cluster templates."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import yaml

from rankmixer_dist.errors import EXIT_PREEMPTED, EXIT_USER_ERROR

ROOT = Path(__file__).resolve().parents[2]
LAUNCH = ROOT / "launch"
SHELL_FILES = sorted([*LAUNCH.rglob("*.sh"), *LAUNCH.rglob("*.sbatch"), ROOT / ".ci" / "run"])

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
        (self.root / "launch").mkdir(parents=True)
        shutil.copy(LAUNCH / "install.sh", self.root / "launch")
        shutil.copy(ROOT / "pyproject.toml", self.root)

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


@pytest.mark.parametrize("path", SHELL_FILES, ids=lambda path: path.name)
def test_shell_files_parse_and_stop_at_the_first_error(path: Path) -> None:
    subprocess.run(["bash", "-n", str(path)], check=True)
    assert "\nset -euo pipefail\n" in path.read_text()


def test_shell_files_pass_shellcheck() -> None:
    if shutil.which("shellcheck") is None:
        pytest.skip("shellcheck is not installed")
    run = subprocess.run(["shellcheck", *map(str, SHELL_FILES)], capture_output=True, text=True, check=False)
    assert run.returncode == 0, run.stdout


@pytest.mark.parametrize("name", ["install.sh", "quickstart.sh"])
def test_help_helps_and_does_nothing(name: str) -> None:
    run = subprocess.run(["bash", f"launch/{name}", "--help"], cwd=ROOT, capture_output=True, text=True, check=False)
    assert (run.returncode, run.stderr) == (0, "")
    assert run.stdout.startswith(f"usage: bash launch/{name}")


def test_ci_runs_the_tests_and_nothing_else() -> None:
    lines = (ROOT / ".ci" / "run").read_text().splitlines()
    assert lines[-1] == "exec bash launch/test.sh --thorough"
    assert os.access(ROOT / ".ci" / "run", os.X_OK)


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


def test_changed_pins_are_installed_into_what_is_there(installer: Installer) -> None:
    installer.run()
    (installer.root / "pyproject.toml").open("a").write("\n# changed\n")
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
        ("OSError: [Errno 28] No space left on device", "the disk is full"),
        ("error: something else", "the whole log is in .venv/install.log"),
    ],
)
def test_a_failure_says_what_to_do(words: str, advice: str, installer: Installer) -> None:
    run = installer.run(FAIL_ON="torch==", FAIL_WITH=words)
    assert run.returncode == 1
    assert f"  | ERROR: {words}" in run.stderr
    assert advice in run.stderr


@pytest.mark.parametrize(
    "change", [{"FAKE_VERSION": "3.11.10"}, {"RANKMIXER_DEVICE": "cuda"}], ids=["python", "device"]
)
def test_another_python_or_device_starts_over(change: dict[str, str], installer: Installer) -> None:
    installer.run()
    (installer.venv / "old").touch()
    assert installer.run(**change).returncode == 0
    assert installer.made_venv and not (installer.venv / "old").exists()


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
        ({"FAKE_VERSION": "3.12.1"}, "Python 3.11 is needed, but"),
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


def test_an_unknown_argument_is_refused(installer: Installer) -> None:
    assert installer.run("--chek").returncode == 2


def documents() -> list[dict[str, Any]]:
    text = (LAUNCH / "cluster" / "kubernetes_train.yaml").read_text()
    return list(yaml.safe_load_all(text))


def test_the_kubernetes_job_is_one_that_its_pods_can_meet_in() -> None:
    service, policy, job = documents()
    assert policy["spec"]["podSelector"]["matchLabels"] == service["spec"]["selector"]
    (allowed,) = policy["spec"]["ingress"]
    assert allowed["from"] == [{"podSelector": policy["spec"]["podSelector"]}]
    pod = job["spec"]["template"]["spec"]
    container = pod["containers"][0]
    assert (service["kind"], service["spec"]["clusterIP"]) == ("Service", "None")
    assert service["spec"]["selector"] == {"job-name": job["metadata"]["name"]}
    assert pod["subdomain"] == service["metadata"]["name"]
    assert job["spec"]["completionMode"] == "Indexed"
    assert job["spec"]["completions"] == job["spec"]["parallelism"]
    assert f"--nnodes={job['spec']['completions']}" in container["args"]
    port = service["spec"]["ports"][0]["port"]
    first = f"{job['metadata']['name']}-0.{service['metadata']['name']}:{port}"
    assert f"--rdzv_endpoint={first}" in container["args"]
    rules = job["spec"]["podFailurePolicy"]["rules"]
    codes = {rule["action"]: rule["onExitCodes"]["values"] for rule in rules if "onExitCodes" in rule}
    assert codes == {"FailJob": [EXIT_USER_ERROR], "Ignore": [EXIT_PREEMPTED]}
    assert pod["restartPolicy"] == "Never", "a failure policy needs it"
    assert "backoffLimitPerIndex" in job["spec"] and container["command"][-1] == "launch/torchrun.py"
    mounts = {mount["mountPath"]: mount["name"] for mount in container["volumeMounts"]}
    volumes = {volume["name"]: volume for volume in pod["volumes"]}
    assert volumes[mounts["/dev/shm"]]["emptyDir"]["medium"] == "Memory"
    assert set(mounts.values()) == volumes.keys()
    assert json.dumps(documents())  # plain data: no date or tag slipped in


def test_the_templates_name_files_that_exist() -> None:
    text = "".join(path.read_text() for path in (LAUNCH / "cluster").iterdir())
    for name in (
        "torchrun_multinode.sh",
        "hostfile",
        "deepspeed.env",
        "slurm_train.sbatch",
        "kubernetes_train.yaml",
        "ray_cluster.sh",
    ):
        assert f"launch/cluster/{name}" in text
        assert (LAUNCH / "cluster" / name).is_file()


def test_the_ray_script_explains_itself() -> None:
    command = ["bash", "launch/cluster/ray_cluster.sh"]
    run = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert run.returncode == 2
    assert "Prepares data on several hosts" in run.stderr and "RAY_ADDRESS" in run.stderr


SRUN = """#!/usr/bin/env bash
# Stands in for srun: notes its arguments, ends with the exit code asked for, or with 75 at a signal, which it notes.
echo "srun $*" >>"$CALLS"
for name in USR1 TERM; do trap "echo got $name >>'$CALLS'; exit 75" "$name"; done
[[ -z $CODE ]] || exit "$CODE"
for ((i = 0; i < 1000; i++)); do sleep 0.05; done
"""
SCONTROL = """#!/usr/bin/env bash
if [[ $1 == show ]]; then printf 'node1\\nnode2\\n'; else echo "scontrol $*" >>"$CALLS"; fi
"""


@pytest.mark.parametrize(
    ("code", "number", "ends", "requeued"),
    [
        ("0", None, 0, False),
        ("2", None, EXIT_USER_ERROR, False),
        ("75", None, EXIT_PREEMPTED, True),  # the tasks alone were told to stop
        ("", signal.SIGUSR1, EXIT_PREEMPTED, True),  # the time is nearly over
        ("", signal.SIGTERM, EXIT_PREEMPTED, False),  # cancelled
    ],
)
def test_the_slurm_job_ends_as_its_tasks_and_goes_on_by_itself(
    code: str, number: signal.Signals | None, ends: int, requeued: bool, tmp_path: Path
) -> None:
    calls = tmp_path / "calls"
    for name, text in (("srun", SRUN), ("scontrol", SCONTROL)):
        (tmp_path / name).write_text(text)
        (tmp_path / name).chmod(0o755)
    slurm = {"SUBMIT_DIR": str(tmp_path), "GPUS_ON_NODE": "4", "JOB_NODELIST": "node[1-2]", "JOB_ID": "7"}
    slurm |= {"CPUS_PER_TASK": "16", "NNODES": "2"}
    env = os.environ | {f"SLURM_{name}": value for name, value in slurm.items()}
    env |= {"PATH": f"{tmp_path}:{os.environ['PATH']}", "CALLS": str(calls), "CODE": code}
    job = subprocess.Popen(["bash", str(LAUNCH / "cluster" / "slurm_train.sbatch"), "configs/a.yaml"], env=env)
    if number is not None:
        deadline = time.monotonic() + 30
        while not (calls.exists() and calls.read_text()) and time.monotonic() < deadline:
            time.sleep(0.02)
        time.sleep(0.3)  # its traps are set
        job.send_signal(number)
    assert job.wait(60) == ends
    first, *others = calls.read_text().splitlines()
    for words in ("--label", "--max_restarts 3", "--rdzv_endpoint node1:20007", "--nproc_per_node 4", "configs/a.yaml"):
        assert words in first
    assert [line for line in others if line.startswith("scontrol")] == (["scontrol requeue 7"] if requeued else [])
    if number is not None:
        assert f"got {number.name[3:]}" in others


def test_what_ssh_does_not_carry_over_is_in_a_file_that_deepspeed_reads() -> None:
    lines = (LAUNCH / "cluster" / "deepspeed.env").read_text().splitlines()
    assert dict(line.split("=", maxsplit=1) for line in lines).keys() >= {"OMP_NUM_THREADS"}
