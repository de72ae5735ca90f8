"""The loader against reading the same columns with pyarrow and doing nothing with them."""

import pyarrow.parquet as pq

from data_pipeline.assemble import BatchAssembler
from data_pipeline.reading import open_prepared, open_split
from data_pipeline.shards import READ_OPTIONS
from rankmixer_dist.batch import Position
from rankmixer_dist.benchmarks.figure import Figure, interleaved
from rankmixer_dist.config import RunConfig


def measure(config: RunConfig) -> list[Figure]:
    """One rank's epoch over the training split, the first if there are several."""
    split = config.train.splits[0]
    manifest = open_prepared(config, [split], rank=0, world_size=1)
    loader = open_split(
        config, manifest, split, rank=0, world_size=1, batch_size=config.loader.batch_size, training=True,
        pin_memory=False,
    )  # fmt: skip
    columns = BatchAssembler(config.features, rows=1, with_truth=False, pin_memory=False).columns()

    def load() -> None:
        for _ in loader.epoch(Position(0, 0)):
            pass

    def read() -> None:
        for shard in manifest.splits[split]:
            file = pq.ParquetFile(config.data.prepared / shard.path, **READ_OPTIONS)
            for group in range(shard.row_groups):
                file.read_row_group(group, columns=columns, use_threads=False)

    seconds = interleaved({"load": load, "read": read})
    rows = manifest.rows(split)
    against = "pyarrow reading the same row groups and columns, no batches"
    return [Figure("loader", rows / seconds["load"], "rows/s", rows / seconds["read"], against)]
