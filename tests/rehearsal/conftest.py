"""What the rehearsal's tests have in common."""

import json

import pytest
import torch

needs_cuda_wheels = pytest.mark.skipif(
    torch.version.cuda is None, reason="needs the CUDA wheels: bash tests/rehearsal/with_cuda_wheels.sh"
)


def lines_of(ended):
    """What a process of cases has found."""
    assert ended.returncode == 0, ended.stderr[-3000:]
    return [json.loads(line) for line in ended.stdout.splitlines() if line.startswith("{")]
