"""Headline figures of a run and of its experts."""

import math
from dataclasses import dataclass
from statistics import fmean

import numpy as np

from rankmixer_dist.report import formats
from rankmixer_dist.report.inputs import Plan, RunInputs
from rankmixer_dist.report.training_log import TrainingLog

_OF_RANKS = (
    ("own_s", "Slowest rank's own step", formats.seconds),
    ("data_wait_s", "Longest data wait / step", formats.seconds),
    ("mem_gb", "Largest memory of a rank", lambda gib: formats.size(gib * 2**30)),
)
"""Figures of `ranks` in a log line, as `train.rank_figures` writes them."""


@dataclass(frozen=True)
class Tile:
    """A headline figure."""

    label: str
    value: str
    detail: str = ""


def run_tiles(inputs: RunInputs) -> list[Tile]:
    """Quality, size and speed of a run; a dash where an input is missing."""
    log, plan, evaluation = inputs.log, inputs.plan, inputs.evaluation
    hosts = f" on {formats.count(len(plan.hosts))} hosts" if plan and len(plan.hosts) > 1 else ""
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
            f"{formats.size(sum(plan.bytes_per_rank))} of tables{hosts}" if plan else "",
        ),
        Tile(
            "Dense parameters",
            formats.scaled(plan.dense.parameters) if plan else formats.MISSING,
            f"{formats.flops(plan.dense.flops_per_row_train)} / row" if plan else "",
        ),
        *(_slowest_ranks(log, plan) if log else []),
    ]


def _slowest_ranks(log: TrainingLog, plan: Plan | None) -> list[Tile]:
    """Of each figure that the ranks do not share, who was most often the highest, and what the others had."""
    tiles = []
    for figure, label, show in _OF_RANKS:
        name = f"ranks/{figure}"
        largest, usual = log.median(f"{name}/max"), log.median(f"{name}/median")
        if largest is None or usual is None:
            continue
        ranks = log.columns[f"{name}/rank"]
        found, counts = np.unique(ranks[np.isfinite(ranks)], return_counts=True)
        if not len(found):
            continue
        rank = int(found[counts.argmax()])
        host = next((host for host, of in (plan.hosts if plan else {}).items() if rank in of), None)
        who = f"rank {rank}" + (f" on {host}" if host else "")
        tiles.append(Tile(label, show(largest), f"{who}; median rank {show(usual)}"))
    return tiles


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
