"""Opens prepared data for a run: manifest checked, bytes verified, a loader a split."""

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING

from data_pipeline.manifest import Manifest, Shard, read_manifest
from data_pipeline.shard_files import verify_shards
from data_pipeline.time_found import moment
from rankmixer_dist.checksum import json_checksum
from rankmixer_dist.config import RunConfig
from rankmixer_dist.errors import UserError
from rankmixer_dist.identity import DataSeen, NumericScale, SplitRows, Stream

if TYPE_CHECKING:
    from data_pipeline.loader import Loader, SplitsInTurn


def find_prepared(config: RunConfig, splits: Sequence[str]) -> Manifest:
    """The manifest of a run's data, whose shards nobody has looked at yet; needs no torch.

    Raises:
        UserError: the data is missing, was prepared for another schema, or lacks a split or rows in it.
    """
    manifest = read_manifest(config.data.prepared, config.features)
    for split in splits:
        if not manifest.splits.get(split):
            raise UserError(
                f"{config.data.prepared}: holds no rows of split {split!r}, but {_held(manifest)}; name one of these"
            )
    return manifest


def open_prepared(
    config: RunConfig, splits: Sequence[str], *, rank: int, world_size: int, manifest: Manifest | None = None
) -> Manifest:
    """The manifest of a run's data, after this rank has verified its share of the shards of `splits`.

    Args:
        manifest: what `find_prepared` gave, where it has been called for these splits.

    Raises:
        UserError: as `find_prepared`, or the data has changed.
    """
    manifest = manifest or find_prepared(config, splits)
    shards: list[Shard] = [shard for split in splits for shard in manifest.splits[split]]
    verify_shards(config.data.prepared, shards[rank::world_size], checksums=config.data.verify_checksums)
    return manifest


def open_split(
    config: RunConfig, manifest: Manifest, split: str, *, rank: int, world_size: int, batch_size: int, training: bool,
    pin_memory: bool,
) -> "Loader":  # fmt: skip
    """A rank's loader of a split: shuffled as the config says for training, in the order of the shards for evaluation.

    Evaluation has a lane a rank, for nothing depends on which rank scores a row.
    """
    from data_pipeline.loader import Loader

    return Loader(
        config.data.prepared,
        manifest,
        config.features,
        split=split,
        batch_size=batch_size,
        rank=rank,
        world_size=world_size,
        shuffle=config.loader.shuffle if training else "none",
        seed=config.seed,
        lanes=config.loader.interleave if training else world_size,
        prefetch=config.loader.prefetch,
        with_truth=manifest.has_truth and not training,
        pin_memory=pin_memory,
        shares=config.loader.share,
        keys_of=() if training else config.features.sliced_ids(config.eval.slices),
    )


def open_training(
    config: RunConfig, manifest: Manifest, *, rank: int, world_size: int, pin_memory: bool
) -> "Loader | SplitsInTurn":
    """A rank's batches of `train.split`: of one split, or of several in turn."""
    from data_pipeline.loader import SplitsInTurn

    loaders = [
        open_split(
            config, manifest, split, rank=rank, world_size=world_size, batch_size=config.loader.batch_size,
            training=True, pin_memory=pin_memory,
        )
        for split in config.train.splits
    ]  # fmt: skip
    return SplitsInTurn(loaders) if config.train.in_turn else loaders[0]


def data_seen(config: RunConfig, manifest: Manifest) -> DataSeen:
    """What a run that trains on this data takes from it, and what its checkpoints will know it by."""
    splits = {}
    for split in config.train.splits:
        shards = manifest.splits[split]
        splits[split] = SplitRows(
            rows=manifest.rows(split),
            cut=json_checksum([shard.rows for shard in shards]),
            content=json_checksum([shard.checksum for shard in shards]),
        )
    made_from = {"format_version": manifest.format_version, **manifest.prepared_from}
    rates = {task: manifest.base_rate(config.data.statistics_of, task) for task in config.features.tasks}
    return DataSeen(
        numerics={n: NumericScale(mean=found.mean, std=found.std) for n, found in manifest.numerics.items()},
        base_rates={task: None if math.isnan(rate) else rate for task, rate in rates.items()},
        stream=Stream(
            made_from=json_checksum(made_from) if manifest.prepared_from else "",
            splits=splits,
            row_group_rows=manifest.row_group_rows,
            shuffle=config.loader.shuffle,
            seed=config.seed,
            interleave=config.loader.interleave,
            batch_size=config.loader.batch_size if config.loader.interleave > 1 else 0,
        ),
    )


def _held(manifest: Manifest) -> str:
    """Splits that have rows, in the order of time: how many, from when to when."""
    spans = {split: manifest.span(split) for split, shards in manifest.splits.items() if shards}
    held = sorted((first, split) for split, (first, _) in spans.items())
    last = {split: moment(end) for split, (_, end) in spans.items()}
    return ", ".join(
        f"{manifest.rows(split):,} of {split!r} ({moment(first)} to {last[split]})" for first, split in held
    )
