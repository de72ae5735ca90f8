"""What the rehearsal's tests have in common."""

import json
from collections.abc import Iterable
from importlib.metadata import distributions
from pathlib import Path

import pytest
import torch
import torchgen
import yaml


def has_cuda_wheels() -> bool:
    """Whether torch and FBGEMM both are the builds for GPUs; torch is on many a machine without one."""
    return torch.version.cuda is not None and any(
        found.name.replace("_", "-") == "fbgemm-gpu" for found in distributions()
    )


needs_cuda_wheels = pytest.mark.skipif(
    not has_cuda_wheels(), reason="needs the CUDA wheels: bash tests/rehearsal/with_cuda_wheels.sh"
)


def lines_of(ended):
    """What a process of cases has found."""
    assert ended.returncode == 0, ended.stderr[-3000:]
    return [json.loads(line) for line in ended.stdout.splitlines() if line.startswith("{")]


def without_kernels(operators: Iterable[str]) -> list[str]:
    """Those of the operators, named as the census names them, that have no kernel for GPUs in these wheels."""
    import fbgemm_gpu  # noqa: F401  loads its operators

    found = []
    for name in sorted(operators):
        space, operator, overload = name.split(".")
        full = f"{space}::{operator}" + ("" if overload == "default" else f".{overload}")
        if not torch._C._dispatch_has_computed_kernel_for_dispatch_key(full, "CUDA"):
            found.append(name)
    return found


def undeclared_kernels(operators: Iterable[str]) -> list[str]:
    """Those of torch's own operators that its declarations, which every build brings, give no kernel for GPUs."""
    text = (Path(torchgen.__file__).parent / "packaged" / "ATen" / "native" / "native_functions.yaml").read_text()
    declared = {entry["func"].partition("(")[0]: entry for entry in yaml.load(text, yaml.CSafeLoader)}

    def on_gpus(name: str) -> bool:
        entry = declared.get(name.removesuffix(".default"), {})
        entry = declared.get(entry.get("structured_delegate"), entry)
        keys = ",".join(entry.get("dispatch", ["Composite"]))
        return "CUDA" in keys or "Composite" in keys

    return sorted(name for name in operators if name.startswith("aten.") and not on_gpus(name.removeprefix("aten.")))
