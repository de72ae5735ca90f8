"""A run, as one YAML file: strict, typed and immutable."""

import itertools
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal

import yaml
from pydantic import Field, NonNegativeFloat, NonNegativeInt, PositiveFloat, PositiveInt, model_validator

from rankmixer_dist.config.data import DataConfig, LoaderConfig, Source
from rankmixer_dist.config.model import ModelConfig
from rankmixer_dist.config.stream import StreamConfig
from rankmixer_dist.errors import nearest
from rankmixer_dist.schema import Schema, Strict


class Schedule(Strict):
    """Learning rate over steps: linear warm-up, then a decay down to `final_ratio` of the peak."""

    warmup_steps: Annotated[int, Field(ge=0)] = 0
    decay: Literal["none", "linear", "cosine"] = "none"
    final_ratio: Annotated[float, Field(ge=0, le=1)] = 0.1


class SparseConfig(Strict):
    """The embedding tables. Their optimizer runs inside backward, so dense clipping does not reach them."""

    optimizer: Literal["rowwise_adagrad"] = "rowwise_adagrad"
    lr: PositiveFloat = 0.05
    eps: PositiveFloat = 1e-8
    init_scale: PositiveFloat = Field(default=0.01, description="weights start uniform in [-init_scale, init_scale]")
    schedule: Schedule = Schedule()
    placement: Literal["sharded", "local"] = Field(
        default="sharded", description="local: unsharded and one process, the reference that sharding is tested against"
    )
    sharding: dict[str, Literal["table_wise", "row_wise"]] = Field(
        default={}, description="table -> fixed sharding type; tables not named are the planner's choice"
    )
    memory_gib: PositiveFloat | None = Field(
        default=None,
        description="memory of a rank for tables; by default what the dense part leaves of a GPU, or a share of the "
        "host's",
    )
    look_ahead: bool = Field(
        default=True,
        description="send the next batch's ids to their owners while a step computes; no figure depends on it",
    )


class DenseConfig(Strict):
    """Engine and optimizer of the dense model."""

    engine: Literal["deepspeed", "plain"] = Field(
        default="deepspeed", description="plain: one process, fp32, the reference that DeepSpeed is tested against"
    )
    zero_stage: Literal[0, 1, 2] = Field(default=1, description="DeepSpeed ZeRO stage")
    precision: Literal["fp32", "bf16"] = Field(
        default="fp32", description="fp16 is refused: its loss scale would leak into the tables' fused updates"
    )
    tf32: bool = Field(
        default=False,
        description="let GPUs multiply fp32 matrices on tensor cores, which read 10 of their 23 mantissa bits",
    )
    optimizer: Literal["adam", "adagrad", "rmsprop"] = "adam"
    lr: PositiveFloat = 1e-3
    weight_decay: NonNegativeFloat = 0.0
    clip_norm: PositiveFloat | None = Field(default=None, description="clips the dense gradient's global norm")
    schedule: Schedule = Schedule()


class ParallelConfig(Strict):
    """How the dense model lies over the ranks: whole on each, or each token's FFN or experts on one rank of a group."""

    expert_size: PositiveInt = Field(
        default=1, description="ranks that share out the tokens; a divisor of the ranks and of the tokens, 1 for none"
    )
    mode: Literal["token", "plain"] = Field(
        default="token",
        description="token: tokens stay where their weights are and token mixing is the exchange; plain: they go there "
        "and back for each FFN, which sends twice as much",
    )
    pieces: PositiveInt = Field(
        default=1,
        description="of mode token: of a rank's rows, one exchanged while another computes; more for a slower network",
    )
    gbit_s_between_hosts: PositiveFloat = Field(
        default=100.0, description="what a rank's GPU sends to other hosts, for the placement of tables"
    )


class StartFrom(Strict):
    """Another run whose weights a run begins with where they mean the same; the rest starts afresh, and is named."""

    run: Path = Field(description="a run directory, for its newest checkpoint, or one of its checkpoints")
    accumulators: bool = Field(default=True, description="take up the tables' optimizer state too")
    rename: dict[str, str] = Field(
        default={},
        description="table, feature, group, task, raw column, or beginning of dense parameters' names, here -> what it "
        "is called there; a table takes the old name along as its salt, unless it has one",
    )


class TrainConfig(Strict):
    """Length of a run and what it leaves behind."""

    split: str | tuple[str, ...] = Field(
        default="train",
        description="or several in the order of time, trained one after the other, each shuffled by itself, with a "
        "checkpoint at the end of each: each can be scored before it is trained on",
    )
    start_from: StartFrom | None = None
    epochs: PositiveInt = Field(
        default=1,
        description="may be changed later, as max_steps: the learning rates keep to the length that the run had when "
        "it began, and what comes after is trained at their last value",
    )
    max_steps: PositiveInt | None = Field(default=None, description="stop after this many steps, epochs or not")
    log_every: PositiveInt = 10
    on_non_finite: Literal["stop", "skip"] = Field(
        default="stop", description="a batch whose loss is not finite ends the run, or is left out and counted"
    )
    stall_timeout_s: PositiveFloat | None = Field(
        default=600.0, description="a rank that does nothing for so long is reported with its stack, and the job ends"
    )
    deterministic: bool = Field(
        default=False,
        description="on GPUs training and evaluate.py, done again on as many of the same, repeat their figures to the "
        "last bit, for some speed; on a CPU it changes nothing; see docs/determinism.md",
    )
    audit_rows: bool = Field(default=False, description="write the ids of the rows trained on into rows_trained/")

    @model_validator(mode="after")
    def _check(self) -> "TrainConfig":
        if not self.splits:
            raise ValueError("split is empty; name a split, or several in the order of time")
        if self.in_turn and self.epochs > 1:
            raise ValueError(
                f"epochs {self.epochs} with several splits: a second pass would train an earlier split on what comes "
                "after it; set epochs to 1"
            )
        return self

    @property
    def splits(self) -> tuple[str, ...]:
        """The splits to train on, in their order."""
        return (self.split,) if isinstance(self.split, str) else self.split

    @property
    def in_turn(self) -> bool:
        """Whether `split` is a list: an epoch of the data position is then a split, and its end is saved."""
        return not isinstance(self.split, str)


class BestCheckpoint(Strict):
    """Scores a split beside each checkpoint and keeps the one with the best figure, however old it is."""

    split: str
    task: str
    metric: Literal["auc", "uauc", "logloss", "ne"] = "auc"

    @property
    def figure(self) -> str:
        """Name of the figure, e.g. `finish.auc`."""
        return f"{self.task}.{self.metric}"

    def is_better(self, new: Mapping[str, float], old: Mapping[str, float]) -> bool:
        """Whether the figure in `new` beats the one in `old`: higher for AUC and UAUC, lower for the others.

        One may lack it: AUC needs both classes, and a run may have begun without `checkpoint.best`.
        """
        if self.figure not in new or self.figure not in old:
            return self.figure in new
        gain = new[self.figure] - old[self.figure]
        return gain > 0 if self.metric in ("auc", "uauc") else gain < 0


class CheckpointConfig(Strict):
    """When a run saves its state, and what it keeps; the end of a run always saves."""

    every: PositiveInt | None = Field(default=None, description="steps")
    keep: PositiveInt = Field(default=2, description="newest checkpoints to keep")
    asynchronous: bool = Field(default=True, description="train on while a checkpoint is being written")
    best: BestCheckpoint | None = None


class EvalConfig(Strict):
    """What evaluate.py scores."""

    split: str = "test"
    batch_size: PositiveInt = 4096
    checkpoint: str = Field(
        default="latest",
        pattern=r"^(latest|best|step-[0-9]{1,18})$",
        description="latest, best (by checkpoint.best), or one that is there by its step: step-00000120 or step-120",
    )
    slices: tuple[str, ...] = Field(
        default=(),
        description="columns whose values get figures of their own: id features with few values, user_known (has rows "
        "in train.split) and user_activity (how many), hour and day (in the time zone of the split's start)",
    )
    compare_paths: bool = Field(
        default=True, description="of DTSI experts, also score along the path that trained, to tell the two apart"
    )


class RunConfig(Strict):
    """Everything a run needs to be repeated."""

    name: str = Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$", max_length=200, description="names the run directory")
    runs: Path = Path("runs")
    seed: NonNegativeInt = 1
    features: Schema = Field(
        description="the schema, or the path of its YAML file, relative to this one, or `extends: PATH` with changes"
    )
    source: Source
    data: DataConfig
    loader: LoaderConfig = LoaderConfig()
    model: ModelConfig = ModelConfig()
    sparse: SparseConfig = SparseConfig()
    dense: DenseConfig = DenseConfig()
    parallel: ParallelConfig = ParallelConfig()
    train: TrainConfig = TrainConfig()
    checkpoint: CheckpointConfig = CheckpointConfig()
    eval: EvalConfig = EvalConfig()
    stream: StreamConfig = StreamConfig()

    @model_validator(mode="before")
    @classmethod
    def _take_salts_along(cls, values: Any) -> Any:
        """A table under another name keeps its rows, for its ids fall into them by the old one."""
        match values:
            case {"train": {"start_from": {"rename": dict(rename)}}, "features": {"tables": dict(tables)}}:
                salted = {
                    name: {"salt": rename[name], **table}
                    for name, table in tables.items()
                    if name in rename and isinstance(table, dict) and table.get("ids") != "identity"
                }
                return {**values, "features": {**values["features"], "tables": {**tables, **salted}}}
        return values

    @model_validator(mode="after")
    def _check(self) -> "RunConfig":
        self._check_tokens()
        splits = [*(("train.split", split) for split in self.train.splits), ("eval.split", self.eval.split)]
        best = self.checkpoint.best
        if best is not None:
            splits.append(("checkpoint.best.split", best.split))
            if best.task not in self.features.tasks:
                known = ", ".join(self.features.tasks)
                raise ValueError(f"checkpoint.best.task {best.task!r} is not one of the tasks: {known}")
        for key, split in splits:
            if split not in self.data.splits:
                raise ValueError(f"{key} {split!r} is not one of data.splits: {', '.join(self.data.splits)}")
        for column in self.eval.slices:
            try:
                self.features.check_slice(column)
            except ValueError as error:
                raise ValueError(f"eval.slices: {error}") from error
        for split, later in itertools.pairwise(self.train.splits):
            # Ranges do not overlap, so one that does not start later is the same or comes before.
            if self.data.splits[later].start <= self.data.splits[split].start:
                raise ValueError(
                    f"train.split: {later!r} does not come after {split!r} in time; list each once, in order"
                )
        if self.dense.engine == "plain" and self.dense.precision != "fp32":
            raise ValueError("dense.engine plain trains in fp32 only; use deepspeed for bf16")
        for table in self.sparse.sharding:
            if table not in self.features.tables:
                known = nearest(table, self.features.tables)
                raise ValueError(f"sparse.sharding names {table!r}, which is not a table{known}")
        return self

    def _check_tokens(self) -> None:
        model = self.model
        if model.tokenizer.kind == "group" and model.tokenizer.num_tokens is not None:
            raise ValueError("model.tokenizer.num_tokens is for chunk and auto_split; a group's tokens are in `groups`")
        num_tokens, token_dim = model.num_tokens(self.features.num_tokens), model.token_dim
        mixes = model.backbone == "rankmixer" and model.rankmixer.mixing == "heads" and model.rankmixer.skip
        if mixes and token_dim % num_tokens:
            raise ValueError(
                f"model.token_dim {token_dim} is not divisible by the {num_tokens} tokens of the semantic groups; "
                f"try {max(1, round(token_dim / num_tokens)) * num_tokens}"
            )

    @property
    def run_dir(self) -> Path:
        """The run directory."""
        return self.runs / self.name

    def to_yaml(self) -> str:
        """The resolved config as YAML text that `load_config` reads back to an equal one."""
        return yaml.safe_dump(self.model_dump(mode="json"), sort_keys=False)


MANNER = frozenset(
    {
        "runs", "data.job", "data.verify_checksums", "loader.prefetch", "loader.share", "sparse.sharding",
        "sparse.memory_gib", "sparse.look_ahead", "dense.zero_stage", "parallel", "train.log_every",
        "train.stall_timeout_s", "train.deterministic", "train.audit_rows", "checkpoint", "eval.split",
        "eval.batch_size", "eval.checkpoint", "eval.slices", "eval.compare_paths", "stream",
    }
)  # fmt: skip
"""Keys, and sections, that say how a run is done and watched; none of them changes what it learns."""
