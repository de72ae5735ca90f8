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
from rankmixer_dist.parallel.standing import names_of_ranks
from rankmixer_dist.parallel.topology import Topology, process_group
from rankmixer_dist.train.evaluate import open_model
from rankmixer_dist.train.memory import keep_freed_memory
from rankmixer_dist.train.paths import evaluating, score

_held = ExitStack()


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
            logits_BK = score(self._tables, self._module, batch.to(self._device)).logits_BK
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
    for name in names_of_ranks(os.environ):
        del os.environ[name]
    topology = _held.enter_context(process_group())
    keep_freed_memory(topology.device)
    return topology
