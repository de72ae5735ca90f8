"""The model of one checkpoint in one process, for who scores batches without being a rank of a job."""

import functools
import os
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from rankmixer_dist.batch import Batch
from rankmixer_dist.config import RunConfig
from rankmixer_dist.parallel.topology import Topology, process_group
from rankmixer_dist.train.evaluate import open_model
from rankmixer_dist.train.memory import keep_freed_memory
from rankmixer_dist.train.paths import evaluating, logits

_held = ExitStack()
_OF_A_RANK = (
    *("RANK", "LOCAL_RANK", "GROUP_RANK", "ROLE_RANK", "CROSS_RANK"),
    *("WORLD_SIZE", "LOCAL_WORLD_SIZE", "GROUP_WORLD_SIZE", "ROLE_WORLD_SIZE", "LOCAL_SIZE", "CROSS_SIZE"),
    *("MASTER_ADDR", "MASTER_PORT", "SLURM_PROCID", "SLURM_LOCALID", "SLURM_NTASKS", "SLURM_NTASKS_PER_NODE"),
)
"""By which launchers tell a process which rank of a job it is; torchrun by all that begins with TORCHELASTIC_, too."""


class ModelScorer:
    """Scores as `evaluate.py` on one rank does: the same tables, model and arithmetic.

    Raises:
        UserError: the checkpoint is damaged or of another model.
    """

    def __init__(
        self,
        config: RunConfig,
        checkpoint: Path,
        *,
        batch_size: int,
    ) -> None:
        self._device = _alone().device
        self._tables, self._module = open_model(config, _alone(), checkpoint, rows_per_rank=batch_size)

    def score(self, batch: Batch) -> np.ndarray:
        """Probabilities as served, float32 [B, K], padding rows included."""
        with evaluating(self._tables, self._module):
            logits_BK = logits(self._tables, self._module, batch.to(self._device))
        return torch.sigmoid(logits_BK.float()).cpu().numpy()


@dataclass(frozen=True)
class OpenScorer:
    """Opens checkpoints of a run as scorers; can be sent to other processes."""

    config: RunConfig
    batch_size: int

    def __call__(self, checkpoint: Path) -> ModelScorer:
        """The model of a checkpoint; raises as it does."""
        return ModelScorer(self.config, checkpoint, batch_size=self.batch_size)


@functools.cache
def _alone() -> Topology:
    """The group of this process, which it keeps until it ends.

    A group of one, whatever job started the process: a Ray that was started under SLURM or torchrun hands their
    variables to its actors, and all would be the same rank of that job.
    """
    for name in list(os.environ):
        if name in _OF_A_RANK or name.startswith("TORCHELASTIC_"):
            del os.environ[name]
    topology = _held.enter_context(process_group())
    keep_freed_memory(topology.device)
    return topology
