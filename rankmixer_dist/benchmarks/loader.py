"""The loader against reading the same columns with pyarrow and doing nothing with them: by ranks and batch size.

The ranks are simulated: the first, a middle one and the last read their slices one after the other, and their CPU time
a row stands for all ranks'.
"""

import itertools
import time

import numpy as np
import pyarrow.parquet as pq
import torch

from data_pipeline.assemble import BatchAssembler
from data_pipeline.manifest import Manifest
from data_pipeline.reading import open_prepared, open_split
from data_pipeline.shards import READ_OPTIONS
from rankmixer_dist.batch import Position
from rankmixer_dist.benchmarks.figure import Figure, interleaved
from rankmixer_dist.config import RunConfig
from rankmixer_dist.train.memory import keep_freed_memory

RANKS = (1, 8, 64)
BATCHES = (2048, 65_536)


def measure(config: RunConfig) -> list[Figure]:
    """An epoch over the training split, the first if there are several; rows a second of CPU time.

    Where several ranks read, row groups are dealt to `loader.interleave` lanes, or to 64 if that is 1.
    """
    keep_freed_memory(torch.device("cpu"))  # as training does
    manifest = open_prepared(config, config.train.splits[:1], rank=0, world_size=1)
    lanes = config.loader.interleave if config.loader.interleave > 1 else RANKS[-1]
    cases = [(1, 1, config.loader.batch_size)]
    cases += [(lanes, ranks, batch_size) for batch_size, ranks in itertools.product(BATCHES, RANKS)]
    runs = {case: _Epoch(config, manifest, *case) for case in cases}
    read = _Read(config, manifest)
    seconds = interleaved({str(case): run for case, run in runs.items()} | {"read": read}, clock=time.process_time)
    rate = manifest.rows(config.train.splits[0]) / seconds["read"]
    against = "pyarrow reading the same row groups and columns, no batches"
    return [
        Figure(
            f"loader, {ranks} rank{'s' * (ranks > 1)}, batch {batch_size:,}, interleave {lanes}",
            run.rows / seconds[str((lanes, ranks, batch_size))], "rows/CPU s", rate, against,
        )
        for (lanes, ranks, batch_size), run in runs.items()
    ]  # fmt: skip


class _Epoch:
    """An epoch of some of the ranks."""

    def __init__(self, config: RunConfig, manifest: Manifest, lanes: int, ranks: int, batch_size: int) -> None:
        changes = {"interleave": lanes, "batch_size": batch_size}
        config = config.model_copy(update={"loader": config.loader.model_copy(update=changes)})
        measured = sorted({0, ranks // 2, ranks - 1})
        split = config.train.splits[0]
        self._loaders = [
            open_split(
                config, manifest, split, rank=rank, world_size=ranks, batch_size=batch_size, training=True,
                pin_memory=False,
            )
            for rank in measured
        ]  # fmt: skip
        share, rows = batch_size // ranks, manifest.rows(split)
        firsts = [np.arange(rank * share, rows, batch_size) for rank in measured]
        self.rows = int(sum(np.minimum(rows - first, share).sum() for first in firsts))

    def __call__(self) -> None:
        for loader in self._loaders:
            for _ in loader.epoch(Position(0, 0)):
                pass


class _Read:
    """All row groups, decoded and dropped."""

    def __init__(self, config: RunConfig, manifest: Manifest) -> None:
        shards = manifest.splits[config.train.splits[0]]
        self._files = [pq.ParquetFile(config.data.prepared / shard.path, **READ_OPTIONS) for shard in shards]
        self._columns = BatchAssembler(config.features, rows=1, with_truth=False, pin_memory=False).columns()

    def __call__(self) -> None:
        for file in self._files:
            for group in range(file.num_row_groups):
                file.read_row_group(group, columns=self._columns, use_threads=False)
