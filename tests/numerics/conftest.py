"""Comparison of a layer with its reference: outputs, and gradients of all inputs and weights, by name."""

from collections.abc import Callable
from typing import Any, Protocol

import pytest
import torch
from torch import Tensor, nn

Reference = Callable[[dict[str, Any], dict[str, Tensor]], Tensor]


class MatchesReference(Protocol):
    def __call__(
        self, module: nn.Module, reference: Reference, inputs: dict[str, Any], dtype: torch.dtype, tolerance: float
    ) -> None: ...


def _outputs_and_gradients(output: Tensor, leaves: dict[str, Tensor], cotangent: Tensor) -> dict[str, Tensor]:
    gradients = torch.autograd.grad(output, list(leaves.values()), cotangent.to(output.dtype))
    return {"output": output.detach(), **dict(zip(leaves, gradients, strict=True))}


@pytest.fixture
def matches_reference() -> MatchesReference:
    """Runs `module(**inputs)` in `dtype` and `reference(inputs, weights)` in fp64 on the same values.

    The error of each tensor is its largest difference over its largest value; a gradient that vanishes is measured by
    a tenth of the largest gradient instead.
    """

    def check(
        module: nn.Module, reference: Reference, inputs: dict[str, Any], dtype: torch.dtype, tolerance: float
    ) -> None:
        def leaves(cast: torch.dtype) -> dict[str, Tensor]:
            floats = {name: x for name, x in inputs.items() if isinstance(x, Tensor) and x.is_floating_point()}
            return {name: x.to(dtype).to(cast).requires_grad_() for name, x in floats.items()}

        module = module.to(dtype)
        ours, weights = leaves(dtype), dict(module.named_parameters())
        output = module(**{**inputs, **ours})
        cotangent = torch.randn(output.shape, dtype=torch.float64)
        actual = _outputs_and_gradients(output, {**ours, **weights}, cotangent)

        theirs = leaves(torch.float64)
        weights64 = {name: w.detach().double().requires_grad_() for name, w in weights.items()}
        expected = _outputs_and_gradients(
            reference({**inputs, **theirs}, weights64), {**theirs, **weights64}, cotangent
        )
        floor = 0.1 * max(float(g.abs().max()) for name, g in expected.items() if name != "output")
        errors = {}
        for name, right in expected.items():
            assert actual[name].shape == right.shape, name
            assert actual[name].dtype == dtype, name
            scale = max(float(right.abs().max()), floor if name != "output" else 0.0)
            errors[name] = float((actual[name].double() - right).abs().max()) / scale
        wrong = {name: error for name, error in errors.items() if not error <= tolerance}
        assert not wrong, f"off by more than {tolerance}: {wrong}"
        print("largest error", max(errors.values()))

    return check
