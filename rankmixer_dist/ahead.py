"""The stream on which a GPU is given what belongs to the next step, beside what runs of this step."""

from functools import cache

import torch


@cache
def ahead_stream(device: torch.device) -> torch.cuda.Stream | None:
    """The same stream for everybody who works ahead on a GPU, so that what they do stays in order; None elsewhere."""
    return torch.cuda.Stream(device) if device.type == "cuda" else None
