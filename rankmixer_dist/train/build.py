"""From a config to the parts of a run: tables, dense model, engine."""

import dataclasses
import sys
from collections.abc import Mapping
from contextlib import nullcontext
from typing import Any

import torch

from rankmixer_dist.config import DenseConfig, DTSIConfig, ModelConfig, RunConfig, Schedule, SoftmaxTopKConfig
from rankmixer_dist.errors import UserError
from rankmixer_dist.identity import DataSeen, NumericScale
from rankmixer_dist.models.features import FieldSpec, GroupSpec, NumericSpec, SequenceSpec
from rankmixer_dist.models.mixture import DTSI, Mixture, SoftmaxTopK
from rankmixer_dist.models.ranker import Ranker, build_ranker
from rankmixer_dist.models.seams import Spreadable
from rankmixer_dist.parallel.engine import DeepSpeedEngine, DenseEngine, OptimizerSettings, PlainEngine
from rankmixer_dist.parallel.expert_groups import ExpertGrid, check_whole_rows, expert_grid
from rankmixer_dist.parallel.token_parallel import check_spreadable, spread
from rankmixer_dist.parallel.topology import Topology, failing_together
from rankmixer_dist.schema import IdFeature, MultiIdFeature, NumericFeature, Schema, SequenceFeature
from rankmixer_dist.sparse.explain import too_large
from rankmixer_dist.sparse.room import Rates, Room, estimated_ids_per_row
from rankmixer_dist.sparse.shard import LocalTables, RowWiseAdagradSettings, Tables, init_tables, shard_tables
from rankmixer_dist.sparse.tables import EmbeddingTables
from rankmixer_dist.train.dense_memory import dense_bytes
from rankmixer_dist.train.room import Host, host_here, memory_for_tables
from rankmixer_dist.train.schedule import LearningRate

_RAREST = 1e-6


def build_model(config: RunConfig, data: DataSeen, *, grid: ExpertGrid | None = None) -> Ranker:
    """The dense model, the same weights from the same seed on every rank; tells torch how to multiply fp32 on GPUs.

    Args:
        data: by which numerics are standardised, and where each task's logit starts.
        grid: over which `spread_out` is to spread it: what other ranks own has no values here, and costs no memory.

    Raises:
        UserError: sizes that do not go together, or a model that cannot be spread.
    """
    schema, model, tokenizer = config.features, config.model, config.model.tokenizer
    if schema.sequences:
        name = next(iter(schema.sequences))
        raise UserError(f"features.sequences.{name}: no model reads events yet; declare a `kind: sequence` feature")
    torch.manual_seed(config.seed)
    # Said either way, as some images switch TF32 on by a variable (TORCH_ALLOW_TF32_CUBLAS_OVERRIDE).
    torch.backends.cuda.matmul.allow_tf32 = config.dense.tf32
    try:
        ranker = build_ranker(
            fields=[
                FieldSpec(name=name, dim=schema.tables[feature.table].dim)
                for name, feature in schema.features.items()
                if isinstance(feature, IdFeature | MultiIdFeature)
            ],
            sequences=[
                SequenceSpec(
                    name=name,
                    dim=schema.tables[feature.table].dim,
                    max_length=feature.max_length,
                    query=feature.query,
                    pooling=feature.pooling,
                    attention_hidden=model.attention_hidden,
                    softmax=model.attention_softmax,
                )
                for name, feature in schema.of_kind(SequenceFeature).items()
            ],
            numerics=[
                NumericSpec(name=name, mean=data.numerics[name].mean, std=data.numerics[name].std)
                for name in schema.of_kind(NumericFeature)
            ],
            groups=_groups(schema),
            token_dim=model.token_dim,
            tokenizer=tokenizer.kind,
            num_tokens=tokenizer.num_tokens,
            tokenizer_hidden=round(tokenizer.hidden_ratio * model.token_dim) if tokenizer.hidden_ratio else None,
            global_token=tokenizer.global_token,
            backbone=model.backbone,
            options=backbone_options(model, num_tasks=len(schema.tasks)),
            head_hidden=model.head_hidden,
            auxiliary=auxiliary_weight(model) > 0,
            base_rates=starting_rates(schema, data),
            part=(0, 1) if grid is None else (grid.position, grid.size),
        )
    except ValueError as error:
        raise UserError(f"model: {error}") from error
    if grid is not None and grid.size > 1:
        try:
            check_spreadable(ranker.backbone, grid.size)
        except ValueError as error:
            raise UserError(f"parallel.expert_size: {error}") from error
    return ranker


def starting_rates(schema: Schema, data: DataSeen) -> list[float]:
    """The share of positives where each task's logit starts.

    A task without a single positive, negative or labelled row has to start somewhere too.
    """
    rates = [data.base_rates.get(task) for task in schema.tasks]
    return [0.5 if rate is None else min(max(rate, _RAREST), 1 - _RAREST) for rate in rates]


def weightless_model(config: RunConfig) -> Ranker:
    """The dense model on the meta device, for its sizes; it needs neither memory nor prepared data.

    Raises:
        UserError: sizes that do not go together.
    """
    with torch.device("meta"):
        return build_model(config, unknown_data(config.features))


def unknown_data(schema: Schema) -> DataSeen:
    """Stands for data that nobody has looked at, where its figures do not matter."""
    return DataSeen(numerics={name: NumericScale(mean=0.0, std=1.0) for name in schema.of_kind(NumericFeature)})


def backbone_options(model: ModelConfig, *, num_tasks: int) -> dict[str, Any]:
    """The chosen backbone's own arguments, from its section of the config."""
    found = model.options.arguments(token_dim=model.token_dim, num_tasks=num_tasks)
    return found | ({"moe": _mixture(found["moe"])} if "moe" in found else {})


def _mixture(moe: DTSIConfig | SoftmaxTopKConfig | None) -> Mixture | None:
    """The layer's part of a section that also says how it is trained."""
    if isinstance(moe, DTSIConfig):
        return DTSI(
            num_experts=moe.num_experts,
            active_ratio=moe.active_ratio,
            fusion=moe.fusion,
            served_share=moe.served_share,
        )
    if isinstance(moe, SoftmaxTopKConfig):
        return SoftmaxTopK(
            num_experts=moe.num_experts,
            active_ratio=moe.active_ratio,
            shared_expert=moe.shared_expert,
            alpha=moe.alpha,
            sparse_training=moe.sparse_training,
        )
    return None


def auxiliary_weight(model: ModelConfig) -> float:
    """Weight of the loss of the backbone's intermediate stages."""
    return getattr(model.options, "auxiliary_weight", 0.0)


def _groups(schema: Schema) -> list[GroupSpec]:
    return [
        GroupSpec(name=group, tokens=tokens, members=tuple(n for n, f in schema.features.items() if f.group == group))
        for group, tokens in schema.groups.items()
    ]


def require_ranks(config: RunConfig, ranks: int) -> None:
    """Makes sure that a run may have so many ranks.

    Raises:
        UserError: it is for one process, or they cannot share out the model's tokens.
    """
    if ranks > 1 and (config.sparse.placement == "local" or config.dense.engine == "plain"):
        raise UserError("sparse.placement local and dense.engine plain are for one process; use the defaults")
    try:
        check_whole_rows(config.parallel.expert_size, ranks)
    except ValueError as error:
        raise UserError(f"parallel.expert_size: {error}") from error


def expert_grid_of(config: RunConfig) -> ExpertGrid:
    """How the ranks share out the model's tokens; all ranks call it.

    Raises:
        UserError: the ranks cannot be grouped so.
    """
    try:
        return expert_grid(config.parallel.expert_size)
    except ValueError as error:
        raise UserError(f"parallel.expert_size: {error}") from error


def spread_out(config: RunConfig, model: Ranker, grid: ExpertGrid) -> None:
    """Cuts the model down to this rank's part of it, in place; a group of one keeps it as it is."""
    if grid.size > 1:
        assert isinstance(model.backbone, Spreadable), "build_model has checked it"
        spread(model.backbone, grid, config.parallel.mode, config.parallel.pieces)


def room_on(
    config: RunConfig,
    host: Host,
    *,
    ranks: int,
    rows_per_rank: int,
    saves: bool,
    ids_per_row: Mapping[str, float] | None = None,
) -> Room:
    """What a run's tables are placed on, on this or other machines: the whole input of their placement but the tables.

    Args:
        host: one of them.
        ranks: on all hosts.
        saves: it is a training run.
        ids_per_row: as measured in the data; what is not measured is estimated.

    Raises:
        UserError: a GPU has no room for the dense part alone.
    """
    rates, dense = None, 0
    if host.gpu is not None:
        between = config.parallel.gbit_s_between_hosts * 1e9 / 8
        rates = Rates(host.gpu.memory_bandwidth, within_host=host.gpu.link_bandwidth, between_hosts=between)
        if config.sparse.memory_gib is None:
            dense = dense_bytes(
                config, weightless_model(config), ranks=ranks, rows_per_rank=rows_per_rank, trains=saves
            )
    memory = memory_for_tables(config, host, saves=saves, dense_bytes=dense)
    if host.gpu is not None and dense and memory <= 0:
        raise UserError(
            f"the dense model does not fit a GPU's {host.gpu.memory_bytes / 2**30:,.2f} GiB: its state and activations "
            f"of {rows_per_rank:,} rows are estimated at {dense / 2**30:,.2f} GiB; take a smaller batch, a higher "
            "dense.zero_stage, or more ranks; if you know better, say what is left in sparse.memory_gib"
        )
    return Room(
        device=host.device,
        rows_per_rank=rows_per_rank,
        memory_bytes=memory,
        local_world_size=host.ranks,
        rates=rates,
        ids_per_row=estimated_ids_per_row(config.features, ids_per_row or {}),
    )


def build_tables(
    config: RunConfig,
    topology: Topology,
    *,
    rows_per_rank: int,
    saves: bool = False,
    ids_per_row: Mapping[str, float] | None = None,
) -> tuple[Tables, dict[str, Any]]:
    """The tables with their starting weights, and the plan as plan.json tells it (on rank 0).

    Args:
        saves: they are to be saved in checkpoints, which takes memory too.
        ids_per_row: as `room_on`.

    Raises:
        UserError: the ranks have no memory for the tables.
    """
    sparse, declared = config.sparse, config.features.tables
    settings = RowWiseAdagradSettings(lr=sparse.lr, eps=sparse.eps)
    host = host_here(topology.device, topology.local_world_size)
    ranks = topology.world_size
    with nullcontext() if sparse.placement == "local" else failing_together():  # hosts may have differing GPUs
        room = room_on(config, host, ranks=ranks, rows_per_rank=rows_per_rank, saves=saves, ids_per_row=ids_per_row)
    placed: list[dict[str, Any]] = []
    tables: Tables
    if sparse.placement == "local":
        if sum(table.bytes for table in declared.values()) > room.memory_bytes:
            raise UserError(too_large(declared, room.memory_bytes, ranks=1, where="one process"))
        tables = LocalTables(EmbeddingTables(config.features, device=topology.device), settings=settings)
    else:
        tables, placement = shard_tables(
            EmbeddingTables(config.features, device=torch.device("meta")),
            settings=settings,
            fixed=sparse.sharding,
            room=dataclasses.replace(room, device=topology.device),
        )
        placed, room = placement.tables, dataclasses.replace(room, memory_bytes=placement.memory_bytes)
        host = dataclasses.replace(host, note="; ".join(filter(None, (host.note, placement.note))))
    init_tables(tables, scale=sparse.init_scale, seed=config.seed)
    return tables, {"tables": placed, "planned_for": planned_for(host, room)}


def machine_room(config: RunConfig) -> tuple[int, str]:
    """Bytes that the tables of a training run may take on this machine, and the machine in words.

    Raises:
        UserError: as `room_on`.
    """
    gpus = torch.cuda.device_count() if torch.cuda.is_available() else 0
    host = host_here(torch.device("cuda", 0) if gpus else torch.device("cpu"), gpus or 1)
    rows = -(-config.loader.batch_size // host.ranks)
    room = room_on(config, host, ranks=host.ranks, rows_per_rank=rows, saves=True)
    return host.ranks * room.memory_bytes, f"this machine's {gpus} GPU{'s' * (gpus > 1)}" if gpus else "this machine"


def planned_for(host: Host, room: Room) -> dict[str, Any]:
    """What the planner was told, for people; rates in bytes a second, None where TorchRec's own were taken.

    The memory is that of the smallest rank, and all else as rank 0 has it.
    """
    return {
        "device": "cpu" if host.gpu is None else host.gpu.key,
        "note": host.note,
        "memory_bytes": room.memory_bytes,
        "ranks_per_host": room.local_world_size,
        "rows_per_rank": room.rows_per_rank,
        "rates": None if room.rates is None else dataclasses.asdict(room.rates),
        "ids_per_row": dict(room.ids_per_row),
    }


def build_engine(config: RunConfig, model: Ranker, topology: Topology, *, rows_per_rank: int) -> DenseEngine:
    """The dense model with what trains it."""
    dense = config.dense
    if topology.is_first and (warning := slow_on(dense, topology.device)):
        print(f"warning: {warning}", file=sys.stderr, flush=True)
    settings = OptimizerSettings(
        kind=dense.optimizer, lr=dense.lr, weight_decay=dense.weight_decay, clip_norm=dense.clip_norm
    )
    model = model.to(topology.device)
    if dense.engine == "plain":
        return PlainEngine(model, settings)
    return DeepSpeedEngine(
        model, settings, zero_stage=dense.zero_stage, precision=dense.precision, rows_per_rank=rows_per_rank
    )


def slow_on(dense: DenseConfig, device: torch.device) -> str:
    """What is to be said of an engine that keeps a GPU waiting, or nothing."""
    if device.type == "cuda" and dense.engine == "deepspeed" and dense.precision == "bf16" and dense.zero_stage == 0:
        return (
            "dense.zero_stage 0 with dense.precision bf16 makes the host wait for the GPU once a parameter in every "
            "step; dense.zero_stage=1 takes the same steps without"
        )
    return ""


def learning_rate(peak: float, schedule: Schedule, *, total_steps: int) -> LearningRate:
    """The rate of every step of a run."""
    return LearningRate(
        peak=peak,
        total_steps=total_steps,
        warmup_steps=schedule.warmup_steps,
        decay=schedule.decay,
        final_ratio=schedule.final_ratio,
    )
