"""The precision in which backbones hand over what they computed."""

import torch
from torch import Tensor


def widen(x: Tensor) -> Tensor:
    """fp32 for narrower floats, unchanged otherwise: heads run in fp32 whatever the backbone's dtype."""
    return x.to(torch.promote_types(x.dtype, torch.float32))
