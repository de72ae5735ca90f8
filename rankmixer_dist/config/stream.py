"""What stream_evaluate.py follows, how it cuts time into windows, and when it ends."""

from pathlib import Path

from pydantic import AwareDatetime, Field, NonNegativeFloat, NonNegativeInt, PositiveFloat, PositiveInt, model_validator

from rankmixer_dist.schema import Strict

HOUR_S = 3600


class StreamConfig(Strict):
    """Streaming evaluation of a run: each window of time is scored by weights that have seen nothing of it."""

    shards: Path | None = Field(
        default=None,
        description="folder where Parquet shards of prepared columns arrive, each complete or absent by rename; null "
        "for the shards of data.prepared",
    )
    window_hours: PositiveFloat = 24.0
    start: AwareDatetime | None = Field(
        default=None, description="where the first window begins; null for the start of the earliest split"
    )
    lateness_hours: NonNegativeFloat = Field(
        default=1.0, description="a window closes once a row so much later than its end has been seen"
    )
    ahead_hours: PositiveFloat | None = Field(
        default=24.0,
        description="a row so much later than the clock is a mistake, and its shard is set aside; null for none",
    )
    actors: NonNegativeInt = Field(
        default=2,
        description="Ray actors, each with a model and a CPU of its own; 0 works in this process, without Ray",
    )
    gpus_per_actor: NonNegativeFloat = Field(
        default=0.0,
        description="GPUs, or the share of one, that each actor holds; 0 scores on the CPU. With actors 0, anything "
        "else takes the first GPU, if there is one",
    )
    batch_size: PositiveInt = 4096
    keep_windows: PositiveInt = Field(
        default=7, description="how many windows back from the newest row checkpoints are kept, for what comes late"
    )
    poll_s: PositiveFloat = Field(default=1.0, description="how often to look for shards and checkpoints")
    refresh_s: PositiveFloat = Field(default=5.0, description="how often stream.html is written and reloads itself")
    run_wait_s: NonNegativeFloat = Field(default=60.0, description="how long to wait for a run that has not begun")
    checkpoint_wait_s: PositiveFloat | None = Field(
        default=None,
        description="how long a window waits for the checkpoint trained up to its start before it takes an older one; "
        "null for as long as the run goes on",
    )
    stop_after_idle_s: PositiveFloat | None = Field(
        default=None,
        description="ends, all windows closed, when nothing new came for so long and nobody trains; null: goes on "
        "until it is stopped",
    )

    @model_validator(mode="after")
    def _check(self) -> "StreamConfig":
        if not (self.window_hours * HOUR_S).is_integer():
            raise ValueError(f"window_hours {self.window_hours:g} is not a whole number of seconds")
        if self.start is not None and self.start.microsecond:
            raise ValueError(f"start {self.start.isoformat()} is not a whole second")
        if self.gpus_per_actor > 1 and not self.gpus_per_actor.is_integer():
            raise ValueError(f"gpus_per_actor {self.gpus_per_actor:g} is neither a share of a GPU nor a whole number")
        return self
