"""A build of fbgemm that has no kernels for the GPUs that torch sees is refused; GPUs that nobody uses are told."""

from pathlib import Path
from typing import Any

import pytest
import torch

from rankmixer_dist.environment import kernels
from rankmixer_dist.environment.check import Check
from rankmixer_dist.errors import UserError
from rankmixer_dist.parallel.topology import process_group


@pytest.fixture
def gpus(monkeypatch: pytest.MonkeyPatch) -> None:
    """torch sees two."""
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    for name in ("DS_ACCELERATOR", "RANKMIXER_DEVICE", "CUDA_VISIBLE_DEVICES"):
        monkeypatch.delenv(name, raising=False)


def table_of_kernels(monkeypatch: pytest.MonkeyPatch, keys: set[str]) -> None:
    def has(operator: str, key: str) -> bool:
        assert operator.startswith("fbgemm::")
        return key in keys

    monkeypatch.setattr(torch._C, "_dispatch_has_kernel_for_dispatch_key", has)


def test_the_installed_build_has_what_its_name_says() -> None:
    from rankmixer_dist.environment.pins import installed

    has = torch._C._dispatch_has_kernel_for_dispatch_key
    assert kernels.has_kernels() == (installed("fbgemm-gpu") is not None)
    assert has(kernels._OPERATOR, "CPU"), "else the operator has another name now, and no build has kernels for it"


def test_tables_without_kernels_are_refused_before_ranks_meet(monkeypatch: pytest.MonkeyPatch, gpus: None) -> None:
    def set_device(device: Any) -> None:
        raise AssertionError("too late")

    monkeypatch.setattr(torch.cuda, "set_device", set_device)
    table_of_kernels(monkeypatch, {"CPU"})
    with pytest.raises(UserError, match="run RANKMIXER_DEVICE=cuda bash launch/install.sh, or hide"), process_group():
        pass
    table_of_kernels(monkeypatch, {"CPU", "CUDA"})
    with pytest.raises(AssertionError, match="too late"), process_group():
        pass


def test_the_doctor_tells_it(monkeypatch: pytest.MonkeyPatch, gpus: None) -> None:
    table_of_kernels(monkeypatch, {"CPU"})
    found = "none for the GPUs that torch sees (2)"
    assert kernels.kernels() == Check(
        "fbgemm kernels", found, "bad", "run: RANKMIXER_DEVICE=cuda bash launch/install.sh"
    )
    monkeypatch.setenv("RANKMIXER_DEVICE", "cpu")
    assert kernels.kernels().verdict == "warn"
    table_of_kernels(monkeypatch, {"CPU", "CUDA"})
    assert kernels.kernels() == Check("fbgemm kernels", "for GPUs and the CPU")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    table_of_kernels(monkeypatch, {"CPU"})
    assert kernels.kernels().verdict == "ok"


def test_gpus_that_torch_cannot_use_are_told(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    for name in ("DS_ACCELERATOR", "RANKMIXER_DEVICE", "CUDA_VISIBLE_DEVICES"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(kernels, "_DEVICES", tmp_path)
    monkeypatch.setattr(kernels, "nvidia_driver", lambda: "570.1")
    assert kernels.unused_gpus() is None
    (tmp_path / "nvidia0").touch()
    monkeypatch.setattr(torch.version, "cuda", None)
    assert kernels.unused_gpus() == (
        "this machine has GPUs, but torch is a CPU build: works on the CPU; see launch/doctor.py"
    )
    monkeypatch.setattr(torch.version, "cuda", "13.0")
    assert "torch cannot use them" in str(kernels.unused_gpus())
    for name, value in (("CUDA_VISIBLE_DEVICES", "-1"), ("RANKMIXER_DEVICE", "cpu"), ("DS_ACCELERATOR", "cpu")):
        with monkeypatch.context() as patch:
            patch.setenv(name, value)
            assert kernels.unused_gpus() is None
    monkeypatch.setattr(kernels, "nvidia_driver", lambda: None)
    assert kernels.unused_gpus() is None
