"""DeepSpeed, imported the one way that suits this project; all of `parallel` takes it from here."""

import logging
import os

import torch

from rankmixer_dist.errors import UserError

_FOUND = "cuda" if torch.cuda.is_available() else "cpu"
if os.environ.get("DS_ACCELERATOR", _FOUND) != _FOUND:
    raise UserError(f"DS_ACCELERATOR is {os.environ['DS_ACCELERATOR']}, but torch sees {_FOUND} here; unset it")
if _FOUND == "cpu":
    os.environ.setdefault("DS_ACCELERATOR", "cpu")

import deepspeed  # noqa: E402

logging.getLogger("DeepSpeed").setLevel(logging.ERROR)
# On CPU DeepSpeed would compile a C++ extension at the first start, for an inference all-reduce that nobody calls here.
deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False

__all__ = ["deepspeed"]
