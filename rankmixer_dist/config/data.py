"""Where a run's rows come from, how they are prepared and cut into splits, and how batches are cut from them."""

import itertools
from pathlib import Path
from typing import Annotated, Literal

from pydantic import AwareDatetime, Field, NonNegativeInt, PositiveInt, model_validator

from rankmixer_dist.schema import USER_ID, Strict

MOST_LANES = 4096
"""One rank alone may have to keep so many row groups."""


class SyntheticSource(Strict):
    """A seeded short-video feed whose true probabilities are known."""

    kind: Literal["synthetic"]
    path: Path = Field(description="folder for the raw log files; written when it does not exist yet")
    seed: NonNegativeInt = 1
    rows: PositiveInt = 300_000
    users: PositiveInt = 2_000
    videos: PositiveInt = 1_000
    days: PositiveInt = 7
    files_per_day: PositiveInt = 2


class KuaiRandSource(Strict):
    """KuaiRand-Pure: every `log_*.parquet` of a folder, with its user and video side files."""

    kind: Literal["kuairand"]
    path: Path = Field(description="folder with the KuaiRand-Pure files")
    past_events: bool = Field(
        default=False, description="each event of the users' sequences is a row too, its long_view and is_like known"
    )


Source = Annotated[SyntheticSource | KuaiRandSource, Field(discriminator="kind")]


class TimeRange(Strict):
    """Rows with start <= time < end."""

    start: AwareDatetime
    end: AwareDatetime

    @model_validator(mode="after")
    def _check(self) -> "TimeRange":
        if self.start >= self.end:
            raise ValueError(f"start {self.start} is not before end {self.end}")
        return self

    def to_ms(self) -> tuple[int, int]:
        """[start, end) in Unix milliseconds."""
        return round(self.start.timestamp() * 1000), round(self.end.timestamp() * 1000)


class GroupConfig(Strict):
    """Which rows stand together, so that what they have of the user is written, looked up and sent once."""

    by: str = Field(default=USER_ID, description="raw column of ids: rows of one id and window are a group")
    window: str = Field(
        default="1d",
        pattern=r"^(none|[1-9][0-9]{0,5}[smhd])$",
        description="how much time a group spans, counted from its split's start: 30m, 12h, 1d; none: the whole split",
    )

    @property
    def window_ms(self) -> int | None:
        """The window in milliseconds, None where it is the whole split."""
        if self.window == "none":
            return None
        return int(self.window[:-1]) * {"s": 1_000, "m": 60_000, "h": 3_600_000, "d": 86_400_000}[self.window[-1]]


class DataConfig(Strict):
    """Where the prepared data lies and how it is made."""

    prepared: Path = Field(description="folder of the Parquet shards and manifest.json")
    splits: dict[str, TimeRange] = Field(description="split name -> time range")
    statistics_of: str = Field(
        default="train",
        description="split whose rows give the numerics' statistics and the tasks' base rates; of a run over several "
        "splits the first, or what is trained and scored early knows of what comes later",
    )
    group: GroupConfig | None = Field(
        default=None,
        description="puts rows of one user side by side; without it, rows stand in the order of time",
    )
    row_group_rows: PositiveInt = Field(default=1024, description="rows of a chunk, the unit of reading and shuffling")
    shard_rows: PositiveInt = Field(default=65_536, description="rows of a Parquet file, whole row groups")
    on_bad_row: Literal["fail", "set_aside"] = "fail"
    on_unreadable_file: Literal["fail", "skip"] = "fail"
    job: Literal["ray", "serial"] = "ray"
    verify_checksums: bool = True

    @model_validator(mode="after")
    def _check(self) -> "DataConfig":
        if self.shard_rows % self.row_group_rows:
            raise ValueError(f"shard_rows {self.shard_rows} is not a multiple of row_group_rows {self.row_group_rows}")
        if not self.splits:
            raise ValueError("splits is empty; declare at least one time range")
        if self.statistics_of not in self.splits:
            raise ValueError(f"statistics_of {self.statistics_of!r} is not one of splits: {', '.join(self.splits)}")
        ranges = sorted((split.to_ms(), name) for name, split in self.splits.items())
        for ((_, end), name), ((start, _), other) in itertools.pairwise(ranges):
            if start < end:
                raise ValueError(f"splits {name!r} and {other!r} overlap in time")
        return self


class LoaderConfig(Strict):
    """How batches are cut from the prepared rows."""

    batch_size: PositiveInt = Field(default=2048, description="rows of a global batch, shared evenly by the ranks")
    shuffle: Literal["chunks", "none"] = "chunks"
    interleave: Annotated[int, Field(ge=1, le=MOST_LANES)] = Field(
        default=1,
        description="row groups that a batch is dealt from, which all ranks together keep decoded; a multiple of the "
        "ranks lets each decode its own alone",
    )
    share: bool = Field(
        default=True,
        description="grouped rows look up what they share once a group; false: each row its own",
    )
    prefetch: PositiveInt = Field(
        default=4, description="batches read ahead in the background, in items of 8,192 rows of a rank or of one batch"
    )
