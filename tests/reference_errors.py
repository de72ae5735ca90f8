"""A layer on a device in a precision against its reference, which is computed on the CPU in fp64."""

import copy
import dataclasses
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

Reference = Callable[[dict[str, Any], dict[str, Tensor]], Tensor]
CPU = torch.device("cpu")
DEVICES = ["cpu", pytest.param("cuda", marks=pytest.mark.cuda)]
"""Parameters of a test whose body is the same on both."""


def device_or_skip(name: str) -> torch.device:
    """The device of a name in `DEVICES`; skips the test where there is none."""
    if name == "cuda":
        if not torch.cuda.is_available():
            pytest.skip("needs a CUDA device")
        torch.backends.cuda.matmul.allow_tf32 = False
        return torch.device("cuda", torch.cuda.current_device())
    return torch.device(name)


def errors_against_reference(
    module: nn.Module, reference: Reference, inputs: dict[str, Any], dtype: torch.dtype, device: torch.device = CPU
) -> dict[str, float]:
    """Errors of `module(**inputs)` and its gradients by `reference(inputs, weights)` on the same values, by name.

    The error of each tensor is its largest difference over its largest value; a gradient that vanishes is measured by
    a tenth of the largest gradient instead.
    """
    floats = {name: x for name, x in inputs.items() if isinstance(x, Tensor) and x.is_floating_point()}

    def leaves(cast: torch.dtype, where: torch.device) -> dict[str, Tensor]:
        return {name: x.to(dtype).to(where, cast).requires_grad_() for name, x in floats.items()}

    module = module.to(device, dtype)
    ours, weights = leaves(dtype, device), dict(module.named_parameters())
    output = module(**{**{name: _moved(x, device) for name, x in inputs.items()}, **ours})
    output = output[0] if isinstance(output, tuple) else output  # what it computes, without what it reports beside
    cotangent = torch.randn(output.shape, dtype=torch.float64)
    actual = _outputs_and_gradients(output, {**ours, **weights}, cotangent.to(device))

    theirs = leaves(torch.float64, CPU)
    weights64 = {name: w.detach().to(CPU, torch.float64).requires_grad_() for name, w in weights.items()}
    expected = _outputs_and_gradients(reference({**inputs, **theirs}, weights64), {**theirs, **weights64}, cotangent)
    floor = 0.1 * max(float(g.abs().max()) for name, g in expected.items() if name != "output")
    errors = {}
    for name, right in expected.items():
        assert actual[name].shape == right.shape, name
        wide = torch.promote_types(dtype, torch.float32)  # in which pooled vectors leave a backbone
        assert actual[name].dtype in ({dtype, wide} if name == "output" else {dtype}), name
        assert actual[name].device == device, name
        scale = max(float(right.abs().max()), floor if name != "output" else 0.0)
        errors[name] = float((actual[name].to(CPU, torch.float64) - right).abs().max()) / scale
    return errors


def bf16_errors(
    module: nn.Module, reference: Reference, inputs: dict[str, Any], device: torch.device
) -> tuple[float, float]:
    """The largest bf16 error on the device, and that on the CPU, which rounds as often."""
    found = []
    for where in (device, CPU):
        torch.manual_seed(0)
        errors = errors_against_reference(copy.deepcopy(module), reference, inputs, torch.bfloat16, where)
        found.append(max(errors.values()))
    return found[0], found[1]


def _outputs_and_gradients(output: Tensor, leaves: dict[str, Tensor], cotangent: Tensor) -> dict[str, Tensor]:
    gradients = torch.autograd.grad(output, list(leaves.values()), cotangent.to(output.dtype))
    return {"output": output.detach(), **dict(zip(leaves, gradients, strict=True))}


def _moved(value: Any, device: torch.device) -> Any:
    if isinstance(value, Tensor):
        return value.to(device)
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        changes = {field.name: _moved(getattr(value, field.name), device) for field in dataclasses.fields(value)}
        return dataclasses.replace(value, **changes)
    return value
