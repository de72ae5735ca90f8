"""Comparison of a layer with its reference: outputs, and gradients of all inputs and weights, by name."""

import copy
from importlib.util import find_spec
from typing import Any, Protocol

import pytest
import torch
from torch import nn

from tests.reference_errors import DEVICES, Reference, bf16_errors, device_or_skip, errors_against_reference

# With torch alone, as on a machine that is tried before anything is installed, most layers can be tested.
collect_ignore = [] if find_spec("torchrec") and find_spec("pydantic") else ["test_model_config.py", "test_tables.py"]
collect_ignore += [] if find_spec("hypothesis") else ["test_token_mixing.py"]

BF16_FACTOR = 3
"""The largest bf16 error on a GPU, over that on the CPU: another order of the same roundings."""


class MatchesReference(Protocol):
    def __call__(
        self, module: nn.Module, reference: Reference, inputs: dict[str, Any], dtype: torch.dtype, tolerance: float
    ) -> None: ...


@pytest.fixture(params=DEVICES)
def matches_reference(request: pytest.FixtureRequest) -> MatchesReference:
    """Runs `module(**inputs)` in `dtype` and `reference(inputs, weights)` in fp64 on the same values.

    On a GPU, what is compared in fp32 is compared in bf16 too, with the error that bf16 has on the CPU.
    """
    device = device_or_skip(request.param)
    told = request.node.user_properties

    def check(
        module: nn.Module, reference: Reference, inputs: dict[str, Any], dtype: torch.dtype, tolerance: float
    ) -> None:
        subject = module.to(dtype)  # which a test may go on with, on the CPU
        if device.type == "cuda":
            subject = copy.deepcopy(subject)
        errors = errors_against_reference(subject, reference, inputs, dtype, device)
        wrong = {name: error for name, error in errors.items() if not error <= tolerance}
        assert not wrong, f"off by more than {tolerance}: {wrong}"
        told.append((str(dtype).removeprefix("torch."), {"error": max(errors.values()), "limit": tolerance}))
        if device.type == "cuda" and dtype == torch.float32:
            ours, theirs = bf16_errors(module, reference, inputs, device)
            assert ours <= BF16_FACTOR * theirs
            told.append(("bfloat16", {"error": ours, "limit": BF16_FACTOR * theirs}))

    return check
