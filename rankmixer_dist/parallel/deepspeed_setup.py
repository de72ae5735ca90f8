"""DeepSpeed, imported the one way that suits this project; all of `parallel` takes it from here."""

import logging
import os

import torch

if not torch.cuda.is_available():
    os.environ.setdefault("DS_ACCELERATOR", "cpu")

import deepspeed

logging.getLogger("DeepSpeed").setLevel(logging.ERROR)
# On CPU DeepSpeed would compile a C++ extension at the first start, for an inference all-reduce that nobody calls here.
deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False

__all__ = ["deepspeed"]
