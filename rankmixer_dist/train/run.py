"""A training run from start or resume to its last checkpoint."""

from collections.abc import Mapping
from contextlib import ExitStack
from dataclasses import asdict
from pathlib import Path
from typing import Any, Protocol

import torch

from rankmixer_dist.batch import Position
from rankmixer_dist.checkpoint.folder import checkpoint_path, checkpoints, step_of
from rankmixer_dist.checkpoint.saver import finish_interrupted
from rankmixer_dist.config import RunConfig
from rankmixer_dist.cost import DenseCost
from rankmixer_dist.identity import DataSeen
from rankmixer_dist.models.counted import count
from rankmixer_dist.parallel.alike import require_shared
from rankmixer_dist.parallel.topology import Topology, barrier, broadcast_object, failing_together
from rankmixer_dist.train.beginning import Beginning, beginning, start_checkpoint
from rankmixer_dist.train.build import (
    auxiliary_weight,
    build_engine,
    build_model,
    build_tables,
    expert_grid_of,
    learning_rate,
    require_ranks,
    spread_out,
    starting_rates,
)
from rankmixer_dist.train.checkpoint import resume
from rankmixer_dist.train.determinism import told_of_switch
from rankmixer_dist.train.full_disk import Complaint
from rankmixer_dist.train.loop import Epochs, Plan, Progress, run_loop
from rankmixer_dist.train.loss_range import LossRange
from rankmixer_dist.train.memory import keep_freed_memory
from rankmixer_dist.train.non_finite import NonFiniteRows
from rankmixer_dist.train.peak import Peak
from rankmixer_dist.train.routing import Routing
from rankmixer_dist.train.run_dir import check_run_dir, claim_run_dir, only_job, write_json
from rankmixer_dist.train.run_hooks import RunHooks
from rankmixer_dist.train.same_start import require_same_checkpoint
from rankmixer_dist.train.scoring import ScoredRows
from rankmixer_dist.train.step import TrainStep
from rankmixer_dist.train.stopwatch import Stopwatch
from rankmixer_dist.train.warm_start import warm_start


class TrainingRows(Epochs, Protocol):
    """One rank's batches of the training split, or splits, and how many steps one pass over all of them is."""

    @property
    def steps_per_epoch(self) -> int: ...


def train(
    config: RunConfig,
    topology: Topology,
    rows: TrainingRows,
    *,
    data: DataSeen,
    validation_rows: ScoredRows | None = None,
    ids_per_row: Mapping[str, float] | None = None,
    events_per_row: Mapping[str, float] | None = None,
) -> None:
    """Trains `config`'s run over all ranks and leaves its directory complete.

    Args:
        config: with its keys in the run's order (`run_dir.in_runs_order`).
        data: of the data here; a run that goes on keeps what it took when it began.
        validation_rows: of `checkpoint.best.split`, if the config asks for the best checkpoint.
        ids_per_row: that are looked up, of features with several ids, as measured in the data, by which the tables are
            placed.
        events_per_row: that each row pools, by sequence, as measured in the data, by which the dense model's FLOPs are
            counted.

    Raises:
        UserError: the config cannot be run on these ranks, the run directory holds another config, or a checkpoint of
            another model or of other rows, another job trains in it, or the loss is no longer finite.
    """
    others: Path | None = None
    with ExitStack() as held:
        with failing_together():
            if topology.is_first:
                # Before the lock, so that a start that is refused touches nothing.
                check_run_dir(config)
                others = start_checkpoint(config, checkpoints(config.run_dir))
                held.enter_context(only_job(config.run_dir))
        require_shared(config.run_dir, topology, key="runs")
        _train(config, topology, rows, others, data, validation_rows, ids_per_row, events_per_row)


def _train(
    config: RunConfig,
    topology: Topology,
    rows: TrainingRows,
    others: Path | None,
    data: DataSeen,
    validation_rows: ScoredRows | None,
    ids_per_row: Mapping[str, float] | None,
    events_per_row: Mapping[str, float] | None,
) -> None:
    require_ranks(config, topology.world_size)
    share = topology.share_of(config.loader.batch_size)
    keep_freed_memory(topology.device)
    grid = expert_grid_of(config)
    # Rank 0 says which checkpoints, as there may be newer ones a moment later; each rank has its own path to `runs`.
    known = ([step_of(path) for path in checkpoints(config.run_dir)], others) if topology.is_first else None
    steps, others = broadcast_object(known)
    saved = [checkpoint_path(config.run_dir, step) for step in steps]
    if others is not None:
        require_same_checkpoint(others, topology)
    begins = Beginning(data)
    with failing_together():
        begins = beginning(config, saved, others, data)
    model = build_model(config, begins.data, grid=grid)
    cost = count(model, events_per_row)
    tables, placed = build_tables(config, topology, rows_per_rank=share, saves=True, ids_per_row=ids_per_row)
    with failing_together():
        if topology.is_first:
            claim_run_dir(config)  # once it is known that the config can be run here
    if begins.others is not None:
        began = warm_start(begins.others, tables, model, topology, config)
        if topology.is_first:
            print(began, flush=True)
            _leave(config.run_dir / "start.json", asdict(began))
    spread_out(config, model, grid)
    moe = config.model.mixture
    routing = None if moe is None else Routing(model, moe, seed=config.seed, device=topology.device)
    engine = build_engine(config, model, topology, rows_per_rank=share)
    plan = _plan(config, topology, rows.steps_per_epoch, cost.flops_per_row_train, begins.planned_steps)
    if topology.is_first:
        _report_plan(config, topology, placed, cost)

    progress = Progress(step=0, rows=0, position=Position(0, 0))
    if saved:
        progress = resume(saved[-1], tables, engine, topology, routing)
        with failing_together():
            if topology.is_first:
                best = config.checkpoint.best
                is_better = None if best is None else best.is_better
                finish_interrupted(config.run_dir, keep=config.checkpoint.keep, is_better=is_better)
        if topology.is_first:
            print(f"goes on from {saved[-1]}{_of_another_length(plan)}", flush=True)
    if progress.step >= plan.total_steps:
        if topology.is_first:
            print(f"{config.run_dir}: finished at step {progress.step}; nothing to do", flush=True)
        return

    stopwatch = Stopwatch(topology.device)
    step = TrainStep(
        tables,
        engine,
        task_weights_K=torch.tensor(plan.task_weights, device=topology.device),
        auxiliary_weight=auxiliary_weight(config.model),
        world_size=topology.world_size,
        stopwatch=stopwatch,
        routing=routing,
        skip_non_finite=config.train.on_non_finite == "skip",
        look_ahead=config.sparse.look_ahead,
    )
    with RunHooks(config, topology, tables, engine, progress, plan, validation_rows, routing, begins) as hooks:
        run_loop(
            rows,
            step,
            plan,
            progress=progress,
            topology=topology,
            stopwatch=stopwatch,
            non_finite=NonFiniteRows(config.run_dir, topology, resume_step=progress.step),
            loss_range=LossRange(plan.tasks, starting_rates(config.features, data), speaks=topology.is_first),
            hooks=hooks,
        )


def _of_another_length(plan: Plan) -> str:
    """What becomes of the learning rates of a run that is longer or shorter than when it began, or nothing."""
    planned = plan.lr.total_steps
    if plan.total_steps == planned or {plan.lr.decay, plan.sparse_lr.decay} == {"none"}:
        return ""
    rates = f"{plan.lr.at(plan.total_steps - 1):.3g} (dense) and {plan.sparse_lr.at(plan.total_steps - 1):.3g} (tables)"
    return (
        f"; the run is {plan.total_steps} steps now and was {planned} when it began: the learning rates keep to "
        f"{planned} steps and end at {rates}; a run of another `name` has a schedule of its own"
    )


def _plan(
    config: RunConfig, topology: Topology, steps_per_epoch: int, flops_per_row: int, planned_steps: int | None
) -> Plan:
    steps = config.train.epochs * steps_per_epoch
    if config.train.max_steps is not None:
        steps = min(steps, config.train.max_steps)
    barrier()  # all ranks measure their peak at once, as they will train at once
    dtype = torch.bfloat16 if config.dense.precision == "bf16" else torch.float32
    return Plan(
        epochs=len(config.train.splits) if config.train.in_turn else config.train.epochs,
        total_steps=steps,
        log_every=config.train.log_every,
        checkpoint_every=config.checkpoint.every,
        checkpoint_epochs=config.train.in_turn,
        lr=learning_rate(config.dense.lr, config.dense.schedule, total_steps=planned_steps or steps),
        sparse_lr=learning_rate(config.sparse.lr, config.sparse.schedule, total_steps=planned_steps or steps),
        tasks=tuple(config.features.tasks),
        task_weights=tuple(task.weight for task in config.features.tasks.values()),
        flops_per_row=flops_per_row,
        peak=Peak(topology.device, dtype),
    )


def _report_plan(config: RunConfig, topology: Topology, placed: dict[str, Any], cost: DenseCost) -> None:
    tables = placed["tables"]
    per_rank = [sum(table["bytes_per_rank"][rank] for table in tables) for rank in range(topology.world_size)]
    dense = {
        "parameters": cost.parameters,
        "flops_per_row_forward": cost.flops_per_row_forward,
        "flops_per_row_train": cost.flops_per_row_train,
    }
    hosts: dict[str, list[int]] = {}
    for rank, host in enumerate(topology.hosts):
        hosts.setdefault(host, []).append(rank)
    sizes = {**placed, "bytes_per_rank": per_rank, "dense": dense}
    plan = {"world_size": topology.world_size, "hosts": hosts, **sizes}
    _leave(config.run_dir / "plan.json", plan)
    rows = sum(table.rows for table in config.features.tables.values())
    print(
        f"{config.name}: {topology.world_size} ranks on {topology.device.type}, {config.features.num_tokens} tokens; "
        f"dense {cost.parameters:,} parameters, {cost.flops_per_row_train:,} training FLOPs a row; "
        f"{len(config.features.tables)} tables, {rows:,} rows",
        flush=True,
    )
    if config.train.deterministic:
        print(told_of_switch(topology.device), flush=True)
    if placed["planned_for"]["note"]:
        print(f"note: {placed['planned_for']['note']}", flush=True)
    for table in tables:
        if table["sharding"] != config.sparse.sharding.get(table["name"], table["sharding"]):
            print(f"table {table['name']} is placed {table['sharding']}: {table['reason']}", flush=True)


def _leave(path: Path, value: Any) -> None:
    """Writes what is for later eyes only."""
    with Complaint("the run goes on without it").instead_of_error(path):
        write_json(path, value)
