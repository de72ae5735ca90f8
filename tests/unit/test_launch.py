"""The shell verbs: syntax and help; the image, and the cluster templates."""

import json
import os
import re
import shutil
import signal
import subprocess
import time
from fnmatch import fnmatch
from pathlib import Path
from typing import Any

import pytest
import yaml

from rankmixer_dist.errors import EXIT_PREEMPTED, EXIT_STALLED, EXIT_USER_ERROR
from rankmixer_dist.parallel.stop_guard import GRACE, deaf_limits
from tests.machines.dockerfile import Dockerfile

ROOT = Path(__file__).resolve().parents[2]
LAUNCH = ROOT / "launch"
SHELL_FILES = sorted([*LAUNCH.rglob("*.sh"), *LAUNCH.rglob("*.sbatch"), ROOT / ".ci" / "run"])


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
    user = pod["securityContext"]
    assert user["runAsNonRoot"] and not container["securityContext"]["allowPrivilegeEscalation"]
    image = Dockerfile(ROOT / "Dockerfile")
    assert ("USER", f"{user['runAsUser']}:{user['runAsGroup']}") in image.instructions
    assert ("WORKDIR", container["workingDir"]) in image.instructions
    mounts = {mount["mountPath"]: mount["name"] for mount in container["volumeMounts"]}
    volumes = {volume["name"]: volume for volume in pod["volumes"]}
    assert volumes[mounts["/dev/shm"]]["emptyDir"]["medium"] == "Memory"
    assert set(mounts.values()) == volumes.keys()
    assert json.dumps(documents())  # plain data: no date or tag slipped in


def test_the_image_installs_the_packages_before_it_has_the_project() -> None:
    steps = list(Dockerfile(ROOT / "Dockerfile").steps({"RANKMIXER_DEVICE": "cuda"}))
    system, *copies, packages, everything, project, command = steps
    assert (system.user, system.kind) == ("0:0", "RUN")
    assert all(step.user == "1000:1000" and step.folder == "/opt/rankmixer_dist" for step in steps[1:])
    files = ("pyproject.toml", "launch/install.sh", "rankmixer_dist/environment/constraints.txt")
    assert [step.words[1:] for step in copies] == [(file, f"{Path(file).parent}/") for file in files]
    assert everything.words[1:] == (".", ".")
    assert packages.line == "PIP_NO_CACHE_DIR=1 bash launch/install.sh --packages"
    assert project.line == "PIP_NO_CACHE_DIR=1 bash launch/install.sh"
    assert {step.variables["RANKMIXER_DEVICE"] for step in (packages, project, command)} == {"cuda"}
    assert (command.kind, command.line) == ("CMD", ".venv/bin/python launch/doctor.py")


def test_an_image_takes_nothing_that_git_leaves_out() -> None:
    left_out = (ROOT / ".dockerignore").read_text().splitlines()
    for name in (line.rstrip("/") for line in (ROOT / ".gitignore").read_text().splitlines()):
        assert any(fnmatch(name, pattern.removeprefix("**/")) for pattern in left_out), name


def test_a_build_argument_that_the_image_does_not_know_is_refused() -> None:
    with pytest.raises(ValueError, match="no such build argument: DEVICE"):
        list(Dockerfile(ROOT / "Dockerfile").steps({"DEVICE": "cuda"}))


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
# Stands in for srun: notes its arguments, ends with the exit code asked for; at SIGUSR1, which it hands on, with its
# tasks' 75; at SIGTERM, as SLURM 22.05's, it kills them.
trap "echo got USR1 >>'$CALLS'; exit 75" USR1
trap "exit 137" TERM
echo "srun $*" >>"$CALLS"
[[ -z $CODE ]] || exit "$CODE"
for ((i = 0; i < 1000; i++)); do sleep 0.05; done
"""
SCONTROL = """#!/usr/bin/env bash
case "$1 $2" in
    "show hostnames") printf 'node1\\nnode2\\n' ;;
    "show job") echo "JobId=7 JobName=rankmixer JobState=$STATE Reason=None Requeue=1" ;;
    *) echo "scontrol $*" >>"$CALLS" && exit "$REFUSES" ;;
esac
"""


class SlurmJob:
    """The batch script of a job under stand-ins of SLURM's commands."""

    def __init__(self, folder: Path) -> None:
        self._folder, self.calls = folder, folder / "calls"
        for name, text in (("srun", SRUN), ("scontrol", SCONTROL)):
            (folder / name).write_text(text)
            (folder / name).chmod(0o755)

    def run(
        self, code: str, number: signal.Signals | None = None, state: str = "RUNNING", refuses: int = 0
    ) -> tuple[int, bool]:
        """Its exit code, and whether it asked to go back into the queue.

        Args:
            code: of its tasks, which else wait for the signal `number` that the batch script gets.
            state: of the job at its end, as SLURM says.
            refuses: exit code of SLURM when it is asked to take the job back.
        """
        self.calls.unlink(missing_ok=True)
        slurm = {"SUBMIT_DIR": str(self._folder), "GPUS_ON_NODE": "4", "JOB_NODELIST": "node[1-2]", "JOB_ID": "7"}
        slurm |= {"CPUS_PER_TASK": "16", "NNODES": "2"}
        env = os.environ | {f"SLURM_{name}": value for name, value in slurm.items()}
        env |= {"PATH": f"{self._folder}:{os.environ['PATH']}", "CALLS": str(self.calls), "CODE": code, "STATE": state}
        env["REFUSES"] = str(refuses)
        job = subprocess.Popen(["bash", str(LAUNCH / "cluster" / "slurm_train.sbatch"), "configs/a.yaml"], env=env)
        if number is not None:
            deadline = time.monotonic() + 30
            while not (self.calls.exists() and self.calls.read_text()) and time.monotonic() < deadline:
                time.sleep(0.02)
            job.send_signal(number)
        ends = job.wait(60)
        return ends, "scontrol requeue 7" in self.calls.read_text().splitlines()


@pytest.mark.parametrize(
    ("code", "number", "state", "ends", "requeued"),
    [
        ("0", None, "RUNNING", 0, False),
        ("1", None, "RUNNING", 1, False),
        ("2", None, "RUNNING", EXIT_USER_ERROR, False),
        ("75", None, "RUNNING", EXIT_PREEMPTED, True),  # the tasks alone were told to stop, as by a preemption
        ("70", None, "RUNNING", EXIT_STALLED, True),
        ("137", None, "RUNNING", 137, True),
        ("143", None, "RUNNING", 143, True),
        ("", signal.SIGUSR1, "RUNNING", EXIT_PREEMPTED, True),  # the time is nearly over
        ("", signal.SIGTERM, "RUNNING", EXIT_PREEMPTED, False),  # cancelled: scancel --batch --signal=TERM
        ("75", None, "COMPLETING", EXIT_PREEMPTED, False),  # cancelled, and the tasks were told
        ("137", None, "CANCELLED", 137, False),
    ],
)
def test_the_slurm_job_ends_as_its_tasks_and_goes_on_by_itself(
    code: str, number: signal.Signals | None, state: str, ends: int, requeued: bool, tmp_path: Path
) -> None:
    job = SlurmJob(tmp_path)
    assert job.run(code, number, state) == (ends, requeued)
    first, *others = job.calls.read_text().splitlines()
    for words in ("--label", "--max_restarts 3", "--rdzv_endpoint node1:20007", "--nproc_per_node 4", "configs/a.yaml"):
        assert words in first
    assert ("got USR1" in others) == (number is not None), "srun hands on SIGUSR1 alone"


def test_a_slurm_job_that_slurm_does_not_take_back_ends_as_its_tasks(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    assert SlurmJob(tmp_path).run("75", refuses=1) == (EXIT_PREEMPTED, True)
    assert "error: SLURM does not take the job back; submit it again" in capfd.readouterr().err


def test_a_slurm_job_that_saves_nothing_does_not_go_on_for_ever(tmp_path: Path) -> None:
    job = SlurmJob(tmp_path)
    ends = [*("137", "70", "75"), *("143", "137", "138", "143"), "137"]
    assert [job.run(code)[1] for code in ends] == [True] * 6 + [False, True]


def test_the_times_of_the_cluster_templates_fit_each_other() -> None:
    """Ranks have `grace` to save; whoever kills all of them waits longer."""
    script = (LAUNCH / "cluster" / "slurm_train.sbatch").read_text()

    def seconds(pattern: str) -> int:
        (found,) = re.findall(pattern, script, re.MULTILINE)
        return int(found)

    grace, least = seconds(r"--shutdown_timeout (\d+)"), 30
    assert seconds(r"^#SBATCH --signal=B:USR1@(\d+)$") >= grace + least
    assert seconds(r"--wait=(\d+)") >= grace + least, "srun, once the first node has ended"
    pod = documents()[2]["spec"]["template"]["spec"]
    (container,) = pod["containers"]
    env = {one["name"]: one["value"] for one in container["env"]}
    assert pod["terminationGracePeriodSeconds"] >= int(env[GRACE]) + least
    assert not [argument for argument in container["args"] if "shutdown" in argument], (
        "one value for launcher and ranks"
    )
    assert 2 * max(deaf_limits(env).values()) < int(env[GRACE]), "a rank that is deaf ends well before"


def test_what_ssh_does_not_carry_over_is_in_a_file_that_deepspeed_reads() -> None:
    lines = (LAUNCH / "cluster" / "deepspeed.env").read_text().splitlines()
    assert dict(line.split("=", maxsplit=1) for line in lines).keys() >= {"OMP_NUM_THREADS"}
