"""Headline figures of a run and of its experts."""

import math
from dataclasses import dataclass
from statistics import fmean

import numpy as np

from rankmixer_dist.report import formats
from rankmixer_dist.report.inputs import RunInputs
from rankmixer_dist.report.training_log import TrainingLog


@dataclass(frozen=True)
class Tile:
    """A headline figure."""

    label: str
    value: str
    detail: str = ""


def run_tiles(inputs: RunInputs) -> list[Tile]:
    """Quality, size and speed of a run; a dash where an input is missing."""
    log, plan, evaluation = inputs.log, inputs.plan, inputs.evaluation
    tasks = evaluation.tasks if evaluation else []
    aucs = [task.auc for task in tasks if task.auc is not None]
    uaucs = [task.uauc for task in tasks if task.uauc is not None]
    trained_rows = int(log.columns["rows"][-1]) if log and math.isfinite(log.columns["rows"][-1]) else None
    speed, mfu = (log.median("samples_per_s"), log.median("mfu")) if log else (None, None)
    return [
        Tile(
            "Mean AUC",
            formats.metric(fmean(aucs) if aucs else None),
            f"mean UAUC {formats.metric(fmean(uaucs))}" if uaucs else "",
        ),
        Tile(
            "Rows trained",
            formats.scaled(trained_rows),
            f"{formats.scaled(evaluation.rows)} evaluated" if evaluation else "",
        ),
        Tile("Samples / s", formats.scaled(speed), "median of the run" if speed is not None else ""),
        Tile("MFU", formats.percent(mfu), "median of the run" if mfu is not None else ""),
        Tile(
            "World size",
            formats.count(plan.world_size) if plan else formats.MISSING,
            f"{formats.size(sum(plan.bytes_per_rank))} of tables" if plan else "",
        ),
        Tile(
            "Dense parameters",
            formats.scaled(plan.dense.parameters) if plan else formats.MISSING,
            f"{formats.flops(plan.dense.flops_per_row_train)} / row" if plan else "",
        ),
    ]


def expert_tiles(log: TrainingLog) -> list[Tile]:
    """How many experts are active or dead, how far gates open, and what the tokens' owners exchange in a step."""
    active, target = log.newest("routing/active_ratio"), log.newest("routing/target")
    tiles = [
        Tile("Active experts", formats.percent(active), "" if target is None else f"target {formats.percent(target)}"),
        Tile("Dead experts", formats.scaled(log.newest("routing/dead_experts")), _dead_detail(log)),
        Tile("Gate scale", formats.metric(log.newest("routing/gate_scale")), "mean of the open gates"),
    ]
    if log.has("exchange/seconds"):
        exchange_s, step_s = log.median("exchange/seconds"), log.median("step_s")
        sent = [log.median(f"exchange/bytes_{way}") or 0.0 for way in ("forward", "backward")]
        of_step = (
            f"{formats.percent(exchange_s / step_s)} of its {formats.seconds(step_s)}" if exchange_s and step_s else ""
        )
        forward, backward = map(formats.size, sent)
        tiles += [
            Tile("Exchange / step", formats.seconds(exchange_s), of_step),
            Tile("Sent / step", formats.size(sum(sent)), f"{forward} forward, {backward} back"),
        ]
    return tiles


def _dead_detail(log: TrainingLog) -> str:
    dead = log.columns["routing/dead_experts"]
    if not log.total("routing/dead_experts"):
        return "every one served a row"
    worst = int(np.nanargmax(dead))
    return f"at most {dead[worst]:.0f}, at step {formats.scaled(log.columns['step'][worst])}"
