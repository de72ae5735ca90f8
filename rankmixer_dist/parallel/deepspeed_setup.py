"""DeepSpeed, imported the one way that suits this project; all of `parallel` takes it from here."""

import logging
import os

from rankmixer_dist.parallel.standing import require_accelerator
from rankmixer_dist.parallel.topology import gpus_seen

require_accelerator(os.environ, gpus_seen())
if not gpus_seen():
    os.environ.setdefault("DS_ACCELERATOR", "cpu")

import deepspeed  # noqa: E402

logging.getLogger("DeepSpeed").setLevel(logging.ERROR)
# On CPU DeepSpeed would compile a C++ extension at the first start, for an inference all-reduce that nobody calls here.
deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False

__all__ = ["deepspeed"]
