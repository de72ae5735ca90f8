"""The doctor: a broken thing becomes a line with its mend, never a traceback, and the exit code follows."""

import json
import os
import resource
import runpy
import shutil
import socket
import subprocess
import sys
import tomllib
from collections import namedtuple
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from packaging.requirements import Requirement

from rankmixer_dist.environment import doctor, driver, kernels, machine, network, pins, software
from rankmixer_dist.environment.check import Check, describe, gibibytes, guarded
from rankmixer_dist.verbs.doctor import examine_run

ROOT = Path(__file__).resolve().parents[2]
GIB = 2**30
Usage = namedtuple("Usage", "total used free")


def returning(value: Any) -> Callable[..., Any]:
    """A function that ignores its arguments."""
    return lambda *_, **__: value


def test_what_raises_becomes_a_bad_line_with_its_mend() -> None:
    @guarded("thing", mend="replace it")
    def check() -> Check:
        raise RuntimeError("undefined symbol: x\nmore that nobody wants to read")

    assert check() == Check("thing", "RuntimeError: undefined symbol: x", "bad", "replace it")
    assert describe(ValueError()) == "ValueError"


@pytest.mark.parametrize("module", ["torch", "fbgemm", "torchrec", "deepspeed", "ray", "pyarrow"])
def test_a_package_that_does_not_import_is_bad(module: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(software, "disagreement", returning(None))
    for name in ("torch", "fbgemm_gpu", "torchrec", "deepspeed", "ray.data", "pyarrow"):
        monkeypatch.setitem(sys.modules, name, None)  # an import of it then fails
    check = getattr(software, module)()
    assert check.verdict == "bad"
    assert "Error: " in check.found
    assert "launch/install.sh" in check.mend


@pytest.mark.parametrize("name", ["torch", "torchrec", "deepspeed", "ray", "pyarrow"])
def test_another_version_than_the_tested_one_is_told_and_the_mend_names_that_one(
    name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(pins, "installed", returning("0.0.1+cpu"))
    check = getattr(software, name)()
    wanted = pins.pinned()[name]
    verdict = "bad" if name in software.EXACT else "warn"
    assert (check.verdict, check.found) == (verdict, f"0.0.1+cpu, but tested with {wanted}")
    assert wanted in check.mend or "launch/install.sh" in check.mend


def test_local_parts_of_versions_are_not_compared(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pins, "installed", returning(f"{pins.pinned()['torch']}+cu130"))
    assert pins.disagreement("torch") is None
    monkeypatch.setattr(pins, "installed", returning(None))
    assert pins.disagreement("torch") == "not installed"


def test_pins_lie_within_the_ranges_of_pyproject_and_leave_none_out() -> None:
    found, pyproject = pins.pinned(), tomllib.loads((ROOT / "pyproject.toml").read_text())
    project = pyproject["project"]
    extras = [line for extra in project["optional-dependencies"].values() for line in extra]
    lines = [*pyproject["build-system"]["requires"], *project["dependencies"], *extras]
    asked = [Requirement(line) for line in lines]
    assert {one.name for one in asked} == found.keys()
    assert not [str(one) for one in asked if not one.specifier.contains(found[one.name])]
    exact = {one.name for one in asked if "==" in str(one.specifier)}
    assert exact == {*software.EXACT, "torchmetrics"}


@pytest.mark.parametrize(
    ("builds", "found", "mend"),
    [
        ((), "not installed", "pip install --no-deps fbgemm-gpu-cpu==1.8.0 (with a GPU: pip install --no-deps fbgemm-"),
        (("fbgemm-gpu", "fbgemm-gpu-cpu"), "which overwrite each other", "remove .venv"),
    ],
)
def test_exactly_one_build_of_fbgemm(
    builds: tuple[str, ...], found: str, mend: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(software, "installed", lambda name: "1.0" if name in builds else None)
    check = software.fbgemm()
    assert check.verdict == "bad"
    assert found in check.found
    assert mend in check.mend


@pytest.mark.parametrize(
    ("version", "verdict"),
    [((3, 10, 12), "bad"), ((3, 11, 0), "ok"), ((3, 13, 5), "ok"), ((3, 14, 2), "ok"), ((3, 15, 0), "bad")],
)
def test_the_python_is_one_that_the_pins_are_built_for(
    version: tuple[int, int, int], verdict: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "version_info", version)
    check = software.python()
    assert (check.found, check.verdict) == (".".join(map(str, version)), verdict)
    assert ("install Python 3.11, 3.12, 3.13 or 3.14, then run: bash launch/install.sh" in check.mend) == bool(
        check.mend
    )


def test_no_virtual_environment_is_a_warning(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("CONDA_PREFIX", raising=False)
    monkeypatch.setattr(sys, "prefix", sys.base_prefix)
    assert software.virtual_environment().verdict == "warn"
    monkeypatch.setenv("CONDA_PREFIX", sys.prefix)
    assert software.virtual_environment().verdict == "ok"


@pytest.mark.parametrize(
    ("origin", "verdict"),
    [(None, "bad"), ({"url": "file:///elsewhere", "dir_info": {"editable": True}}, "bad"), ({}, "ok")],
)
def test_the_project_is_the_installed_one(
    origin: dict[str, Any] | None, verdict: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    files = {"RECORD": "x", "direct_url.json": json.dumps(origin)}
    built = SimpleNamespace(version="0.1.0", read_text={}.get)  # an egg-info folder: built, not installed
    real = SimpleNamespace(version="0.1.0", read_text=files.get)
    found = [built] if origin is None else [built, real]
    monkeypatch.setattr(software.metadata, "distributions", returning(found))
    assert software.project().verdict == verdict
    monkeypatch.setattr(software, "IN_TREE", False)  # an installed copy, made from a tree that is elsewhere
    assert software.project().verdict == ("bad" if origin is None else "ok")


def test_an_installed_copy_sends_nobody_to_the_installer_of_the_tree(tmp_path: Path) -> None:
    folder = ROOT / "rankmixer_dist" / "environment"
    assert [path.name for path in folder.glob("*.py") if "launch/install.sh" in path.read_text()] == ["check.py"]
    copy = tmp_path / "site-packages" / "rankmixer_dist" / "environment" / "check.py"
    copy.parent.mkdir(parents=True)
    shutil.copy(folder / "check.py", copy)
    told = [value for name, value in runpy.run_path(str(copy)).items() if "INSTALL" in name]
    assert len(told) == 4 and not [text for text in told if "launch/" in text or ".venv" in text]


def test_python_and_the_installer_agree_with_pyproject() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    minors = [int(version.removeprefix("3.")) for version in software.PYTHONS]
    assert project["requires-python"] == f">=3.{minors[0]},<3.{minors[-1] + 1}"
    newest_first = " ".join(reversed(software.PYTHONS))
    assert f"pythons=({newest_first})" in (ROOT / "launch" / "install.sh").read_text()


@pytest.mark.parametrize(
    ("runs", "verdict", "mend"),
    [
        (False, "warn", "fine on a build machine; where it runs an NVIDIA driver is needed"),
        (True, "bad", "NVIDIA_DRIVER_CAPABILITIES=compute,utility"),
    ],
)
def test_a_cuda_install_without_the_drivers_library(
    runs: bool, verdict: str, mend: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    import torch

    a_cuda_install(monkeypatch)
    monkeypatch.setattr(driver, "has_driver", returning(runs))
    monkeypatch.setattr(torch.version, "cuda", "13.0")
    check = software.fbgemm()
    assert (check.verdict, check.found) == (
        verdict,
        "1.8.0 (fbgemm-gpu), not tried: the driver's libnvidia-ml.so.1 is not here",
    )
    assert mend in check.mend
    assert software.torchrec() == Check("torchrec", f"1.8.0, {check.found.partition(', ')[2]}", verdict, check.mend)
    assert (kernels.kernels().verdict, kernels.kernels().mend) == (verdict, check.mend)


def test_fbgemm_for_cuda_beside_torch_for_the_cpu(monkeypatch: pytest.MonkeyPatch) -> None:
    import torch

    a_cuda_install(monkeypatch)
    monkeypatch.setattr(torch.version, "cuda", None)
    check = software.fbgemm()
    assert (check.verdict, check.found) == ("bad", "fbgemm-gpu is for CUDA, but torch is a CPU build")
    assert "RANKMIXER_DEVICE=cuda bash launch/install.sh" in check.mend


def a_cuda_install(monkeypatch: pytest.MonkeyPatch) -> None:
    """fbgemm-gpu on a machine that lacks the driver's library."""

    def missing(name: str) -> None:
        raise OSError(f"{name}: cannot open shared object file")

    monkeypatch.setattr(software, "disagreement", returning(None))
    for module in (software, driver):
        monkeypatch.setattr(module, "installed", {"fbgemm-gpu": "1.8.0", "torchrec": "1.8.0"}.get)
    monkeypatch.setattr(driver.ctypes, "CDLL", missing)


def test_a_driver_is_seen_by_its_devices_where_a_container_has_no_more_of_it(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(driver, "_MARKS", (tmp_path / "nvidiactl",))
    monkeypatch.setattr(driver, "nvidia_driver", returning(None))
    assert not driver.has_driver()
    (tmp_path / "nvidiactl").touch()
    assert driver.has_driver()


@pytest.mark.parametrize(
    ("driver", "environment", "verdict", "mend"),
    [
        (None, {}, "ok", ""),
        ("570.1", {"RANKMIXER_DEVICE": "cpu"}, "ok", ""),
        ("570.1", {"CUDA_VISIBLE_DEVICES": ""}, "warn", "unset CUDA_VISIBLE_DEVICES"),
        ("570.1", {}, "bad", ""),
    ],
)
def test_devices_that_torch_cannot_use(
    driver: str | None, environment: dict[str, str], verdict: str, mend: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    import torch

    for name in ("RANKMIXER_DEVICE", "CUDA_VISIBLE_DEVICES"):
        monkeypatch.delenv(name, raising=False)
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr(torch.cuda, "is_available", returning(False))
    monkeypatch.setattr(machine, "nvidia_driver", returning(driver))
    check = machine.cuda()
    assert check.verdict == verdict
    assert mend in check.mend
    assert bool(check.mend) == (verdict != "ok")


def test_a_driver_that_hangs_or_is_missing_is_none(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(subprocess, "run", returning(SimpleNamespace(stdout="570.1\n570.1\n")))
    assert machine.nvidia_driver() == "570.1"

    def hang(*_: object, **__: object) -> None:
        raise subprocess.TimeoutExpired("nvidia-smi", 30)

    monkeypatch.setattr(subprocess, "run", hang)
    assert machine.nvidia_driver() is None


def test_cores_follow_the_quota_of_the_container(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(machine, "CGROUP", tmp_path)
    monkeypatch.setattr(os, "sched_getaffinity", returning({0, 1, 2, 3}))
    assert machine.cores().verdict == "ok"
    (tmp_path / "cpu.max").write_text("max 100000\n")
    assert machine.cores().found.startswith("4 usable")
    (tmp_path / "cpu.max").write_text("150000 100000\n")
    check = machine.cores()
    assert (check.verdict, check.found.split(" of")[0]) == ("warn", "1.5 usable")


@pytest.mark.parametrize(("limit", "verdict"), [(2, "bad"), (5, "warn"), (8, "ok")])
def test_memory_follows_the_limit_of_the_container(
    limit: int, verdict: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(machine, "CGROUP", tmp_path)
    monkeypatch.setattr(machine, "_available_memory", returning(100 * GIB))
    monkeypatch.setattr(os, "sysconf", returning(2**19))  # pages times page size: 256 GiB
    (tmp_path / "memory.max").write_text(f"{limit * GIB}\n")
    (tmp_path / "memory.current").write_text("0\n")
    check = machine.memory()
    assert (check.verdict, bool(check.mend)) == (verdict, verdict != "ok")
    assert check.found == f"{limit}.0 GiB available of {limit}.0 GiB"


@pytest.mark.parametrize(("free", "verdict"), [(0.5, "bad"), (3, "warn"), (50, "ok")])
def test_a_full_disk(free: float, verdict: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shutil, "disk_usage", returning(Usage(100 * GIB, 0, int(free * GIB))))
    check = machine.disk()
    assert check.verdict == verdict
    assert ("data.prepared" in check.mend) == (verdict != "ok")


def test_shared_memory_of_a_container(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(machine, "SHARED_MEMORY", tmp_path)
    monkeypatch.setattr(shutil, "disk_usage", returning(Usage(64 * 2**20, 0, 64 * 2**20)))
    check = machine.shared_memory()
    assert (check.verdict, check.found) == ("warn", "64 MiB free of 64 MiB")
    assert "--shm-size" in check.mend
    monkeypatch.setattr(machine, "SHARED_MEMORY", tmp_path / "missing")
    assert machine.shared_memory().verdict == "bad"


@pytest.mark.parametrize(
    ("limits", "verdict", "mend"),
    [
        ((65536, 65536), "ok", ""),
        ((resource.RLIM_INFINITY, resource.RLIM_INFINITY), "ok", ""),
        ((1024, 1_048_576), "warn", "ulimit -n 65536"),
        ((1024, 8192), "warn", "ulimit -n 8192"),
        ((1024, 1024), "warn", "raise the hard limit"),
        ((128, 65536), "bad", "ulimit -n 65536"),
    ],
)
def test_few_open_files(limits: tuple[int, int], verdict: str, mend: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(resource, "getrlimit", returning(limits))
    check = machine.open_files()
    assert check.verdict == verdict
    assert check.mend.startswith(mend)
    assert bool(check.mend) == (verdict != "ok")


def test_a_host_name_that_does_not_resolve(monkeypatch: pytest.MonkeyPatch) -> None:
    def unknown(*_: object) -> None:
        raise socket.gaierror(-2, "Name or service not known")

    monkeypatch.setattr(socket, "gethostname", returning("box"))
    monkeypatch.setattr(socket, "getaddrinfo", unknown)
    check = network.hostname()
    assert check.verdict == "warn"
    assert "box" in check.mend and "GLOO_SOCKET_IFNAME" in check.mend


def test_a_host_name_that_leads_other_hosts_to_themselves(monkeypatch: pytest.MonkeyPatch) -> None:
    own = [(socket.AF_INET, socket.SOCK_STREAM, 6, "", ("127.0.1.1", 0))]
    monkeypatch.setattr(socket, "getaddrinfo", returning(own))
    check = network.hostname()
    assert check.verdict == "warn"
    assert "127.0.1.1, which other hosts cannot reach" in check.found and "GLOO_SOCKET_IFNAME" in check.mend


def test_a_host_name_that_is_another_machine(monkeypatch: pytest.MonkeyPatch) -> None:
    elsewhere = [(socket.AF_INET, socket.SOCK_STREAM, 6, "", ("192.0.2.1", 0))]  # an address reserved for examples
    monkeypatch.setattr(socket, "getaddrinfo", returning(elsewhere))
    assert network.hostname().verdict == "warn"


def test_a_loopback_that_is_down(monkeypatch: pytest.MonkeyPatch) -> None:
    def down(*_: object, **__: object) -> None:
        raise OSError(99, "Cannot assign requested address")

    monkeypatch.setattr(socket, "create_server", down)
    check = network.loopback()
    assert check.verdict == "bad"
    assert "ip link set lo up" in check.mend


def test_the_loopback_of_this_machine_answers() -> None:
    assert network.loopback().verdict == "ok"


def test_a_gloo_that_cannot_connect_or_sums_wrongly(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(network, "_sum_in_group_of_one", returning(4.0))
    assert network.gloo().verdict == "bad"

    def refuse(*_: object) -> None:
        raise RuntimeError("connectFullMesh failed")

    monkeypatch.setattr(network, "_sum_in_group_of_one", refuse)
    check = network.gloo()
    assert check.verdict == "bad"
    assert "GLOO_SOCKET_IFNAME" in check.mend


@pytest.mark.parametrize(("verdicts", "code"), [(("ok",), 0), (("ok", "warn"), 0), (("ok", "bad", "warn"), 1), ((), 0)])
def test_the_exit_code(verdicts: tuple[Any, ...], code: int) -> None:
    assert doctor.exit_code([Check("x", "y", verdict, "z") for verdict in verdicts]) == code


def test_the_table_shows_every_line_and_every_mend(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    disk, ray = Check("disk", "1 GiB [x]", "warn", "free some"), Check("ray", "?", "bad", "pip")
    checks = [Check("python", "3.11.7"), disk, ray]
    doctor.show(checks)
    with_rich = capsys.readouterr().out
    monkeypatch.setitem(sys.modules, "rich.console", None)
    doctor.show(checks)
    for printed in (with_rich, capsys.readouterr().out):
        assert all(one.name in printed and one.found in printed for one in checks)
        assert "warn: disk: free some\nbad: ray: pip\n1 ok, 1 warn, 1 bad\n" in printed


def test_chatter_of_the_libraries_stays_off_the_screen(capfd: pytest.CaptureFixture[str]) -> None:
    def chatty() -> Check:
        os.write(1, b"[Gloo] connected\n")
        os.write(2, b"WARNING accelerator\n")
        return Check("x", "y")

    assert doctor.examine([chatty]) == [Check("x", "y")]
    os.write(1, b"after\n")
    assert capfd.readouterr() == ("after\n", "")


def test_sizes_are_readable() -> None:
    assert [gibibytes(64 * 2**20), gibibytes(1.5 * GIB), gibibytes(300 * GIB)] == ["64 MiB", "1.5 GiB", "300 GiB"]


def of_run(folder: Path, *overrides: str) -> dict[str, Check]:
    """What the doctor says of the quickstart with its folders in `folder`."""
    own = [f"runs={folder}/runs", f"data.prepared={folder}/prepared", *overrides]
    return {check.name: check for check in examine_run(str(ROOT / "configs" / "quickstart.yaml"), own)}


def test_what_a_config_names_is_looked_at(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    found = of_run(tmp_path)
    assert {name: check.verdict for name, check in found.items()} == {"config": "ok", "runs": "ok", "data": "warn"}
    assert "3 more checkpoints take 20 MiB" in found["runs"].found
    assert not list(tmp_path.iterdir())
    large = of_run(tmp_path, "features.tables.user.rows=40000000000")["runs"]
    assert large.verdict == "bad" and "3 more checkpoints take 7600 GiB" in large.found, large
    (tmp_path / "runs").touch()
    (tmp_path / "prepared").mkdir()
    (tmp_path / "prepared" / "manifest.json").write_text("{}")
    found = of_run(tmp_path)
    assert (found["runs"].verdict, found["data"].verdict) == ("bad", "bad")
    assert "is no folder" in found["runs"].found and "manifest.json" in found["data"].found
    (unknown,) = of_run(tmp_path, "dense.lrr=1").values()
    assert unknown.verdict == "bad" and "did you mean 'lr'" in unknown.found
    monkeypatch.setitem(sys.modules, "rankmixer_dist.config", None)  # as where its packages are missing
    (broken,) = of_run(tmp_path).values()
    assert broken.verdict == "bad" and "launch/install.sh" in broken.mend


def test_the_verb_prints_json_for_machines_and_agrees_with_its_exit_code(tmp_path: Path) -> None:
    config = ["configs/quickstart.yaml", f"runs={tmp_path}", f"data.prepared={tmp_path}"]
    command = [sys.executable, "launch/doctor.py", "--json", *config]
    run = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, stdin=subprocess.DEVNULL, check=False)
    told = json.loads(run.stdout)
    assert [check["name"] for check in told["checks"]][len(doctor.CHECKS) :] == ["config", "runs", "data"]
    assert run.returncode == (0 if told["ok"] else 1), run.stderr
    assert run.stderr == ""
    software_names = {"python", "torch", "fbgemm", "torchrec", "deepspeed", "ray", "pyarrow", "gloo"}
    verdicts = {check["name"]: check["verdict"] for check in told["checks"]}
    assert {name: verdicts[name] for name in software_names} == dict.fromkeys(software_names, "ok")
