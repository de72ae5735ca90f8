"""Puts a run's figures and pictures into the HTML template."""

import math
from dataclasses import dataclass
from pathlib import Path
from typing import TypeGuard

from rankmixer_dist.report import expert_plots, formats, prediction_plots, training_plots
from rankmixer_dist.report.curves import prediction_curves
from rankmixer_dist.report.inputs import Evaluation, Predictions, RunInputs, TaskEvaluation, TrainedPath, read_run
from rankmixer_dist.report.plan_plot import sharding_plot
from rankmixer_dist.report.slices import SlicedColumn, slices_plot
from rankmixer_dist.report.svg import Plot
from rankmixer_dist.report.templates import page_template, write_page
from rankmixer_dist.report.tiles import expert_tiles, run_tiles
from rankmixer_dist.report.training_log import TrainingLog

TEMPLATE = "report.html.jinja"
AUC_BAR_STEP = 0.05


@dataclass(frozen=True)
class BarScale:
    """The range of AUC that the small bars of the results table span."""

    low: float
    high: float

    def position(self, auc: float) -> float:
        """Where an AUC lies, 0 to 100."""
        return 100 * (auc - self.low) / (self.high - self.low)


@dataclass(frozen=True)
class AUCBar:
    """Positions on a scale of 0 to 100 for the small AUC picture of a table row; None where unknown."""

    value: float
    low: float | None
    high: float | None
    reachable: float | None


@dataclass(frozen=True)
class TaskRow:
    """One row of the results table."""

    figures: TaskEvaluation
    bar: AUCBar | None
    auc_gap: float | None
    uauc_gap: float | None


@dataclass(frozen=True)
class PathRow:
    """A task by the sparse path, which serves, and by the one that trained."""

    served: TaskEvaluation
    trained: TrainedPath
    auc_gap: float | None


@dataclass(frozen=True)
class PredictionCard:
    """ROC and calibration of one task; no plots where its predictions hold a single class."""

    task: str
    plots: list[Plot]
    rows: int
    positives: int


@dataclass(frozen=True)
class SliceCard:
    """A column that the evaluation was sliced by; no plot where no value has an AUC."""

    column: SlicedColumn
    plot: Plot | None


def render_report(run_dir: Path) -> Path:
    """Write `report.html` into a run directory from what lies there; a missing input leaves out its section.

    Reads config.yaml, metrics.jsonl, plan.json, eval.json and predictions/*.parquet. The page needs no other file and
    no network.

    Returns:
        The path of the page, which is the old one or the new one at any time, never half of one.

    Raises:
        UserError: no such directory, or an input that does not hold what its contract says.
    """
    inputs = read_run(run_dir)
    evaluated_tasks = inputs.evaluation.tasks if inputs.evaluation else []
    bar_scale = _bar_scale(evaluated_tasks)
    names = ("metric", "gap", "percent", "signed_percent", "count", "scaled", "size", "flops", "rank_ranges")
    page = page_template(TEMPLATE, {name: getattr(formats, name) for name in names}).render(
        title=(inputs.config and inputs.config.name) or inputs.directory_name,
        subtitle=_subtitle(inputs),
        tiles=run_tiles(inputs),
        evaluation=inputs.evaluation,
        bar_scale=bar_scale,
        task_rows=[_task_row(task, bar_scale) for task in evaluated_tasks],
        slice_cards=_slice_cards(inputs.evaluation),
        training_plots=_training_plots(inputs.log),
        task_loss_plots=training_plots.task_loss_plots(inputs.log) if inputs.log else [],
        log=inputs.log,
        expert_tiles=expert_tiles(inputs.log) if _has_experts(inputs.log) else [],
        expert_plots=_expert_plots(inputs.log),
        routing=inputs.evaluation.routing if inputs.evaluation else None,
        path_rows=_path_rows(inputs.evaluation),
        prediction_cards=_prediction_cards(inputs.predictions),
        predictions=inputs.predictions,
        plan=inputs.plan,
        sharding_plot=sharding_plot(inputs.plan) if inputs.plan and inputs.plan.tables else None,
        config=inputs.config,
    )
    return write_page(run_dir / "report.html", page)


def _subtitle(inputs: RunInputs) -> list[str]:
    parts = []
    if inputs.config and inputs.config.seed is not None:
        parts.append(f"seed {inputs.config.seed}")
    if inputs.evaluation and inputs.evaluation.split:
        parts.append(f"evaluated on {inputs.evaluation.split}")
    if inputs.evaluation and inputs.evaluation.checkpoint:
        parts.append(f"checkpoint {Path(inputs.evaluation.checkpoint).name}")
    return parts


def _bar_scale(tasks: list[TaskEvaluation]) -> BarScale:
    """From 0.5, or the multiple of 0.05 below the lowest AUC, to the one above the highest figure shown."""
    drawn = [
        value
        for task in tasks
        for value in (task.auc, task.auc_low, task.auc_high, task.reachable_auc)
        if value is not None
    ]
    low = min([0.5, *(math.floor(value / AUC_BAR_STEP) * AUC_BAR_STEP for value in drawn)])
    high = max([0.55, *(math.ceil(value / AUC_BAR_STEP) * AUC_BAR_STEP for value in drawn)])
    return BarScale(low, high)


def _task_row(task: TaskEvaluation, scale: BarScale) -> TaskRow:
    bar = None
    if task.auc is not None:
        bar = AUCBar(
            value=scale.position(task.auc),
            low=None if task.auc_low is None else scale.position(task.auc_low),
            high=None if task.auc_high is None else scale.position(task.auc_high),
            reachable=None if task.reachable_auc is None else scale.position(task.reachable_auc),
        )
    return TaskRow(
        figures=task,
        bar=bar,
        auc_gap=_difference(task.auc, task.reachable_auc),
        uauc_gap=_difference(task.uauc, task.reachable_uauc),
    )


def _slice_cards(evaluation: Evaluation | None) -> list[SliceCard]:
    if evaluation is None:
        return []
    tasks = [task.name for task in evaluation.tasks]
    return [
        SliceCard(column, slices_plot(column, tasks, prefix=f"slices-{index}"))
        for index, column in enumerate(evaluation.slices)
    ]


def _difference(value: float | None, reference: float | None) -> float | None:
    return None if value is None or reference is None else value - reference


def _training_plots(log: TrainingLog | None) -> list[Plot]:
    if log is None:
        return []
    return [
        plot(log)
        for plot, shown in (
            (training_plots.loss_plot, log.has("loss")),
            (training_plots.learning_rate_plot, log.has("lr") or log.has("sparse_lr")),
            (training_plots.throughput_plot, log.has("samples_per_s") or log.has("mfu")),
            (training_plots.step_time_plot, any(log.has(name) for name in training_plots.TIME_PARTS)),
        )
        if shown
    ]


def _has_experts(log: TrainingLog | None) -> TypeGuard[TrainingLog]:
    return log is not None and log.has("routing/active_ratio")


def _expert_plots(log: TrainingLog | None) -> list[Plot]:
    if not _has_experts(log):
        return []
    # Without lambda there is one router, and what serves is what trained.
    steered = log.has("routing/lambda")
    return [
        *expert_plots.block_plots(log),
        *([expert_plots.lambda_plot(log)] if steered else []),
        *([expert_plots.path_gap_plot(log)] if steered and log.has("routing/path_gap") else []),
    ]


def _path_rows(evaluation: Evaluation | None) -> list[PathRow]:
    if evaluation is None or evaluation.routing is None:
        return []
    trained = evaluation.routing.trained_path
    return [
        PathRow(task, trained[task.name], _difference(task.auc, trained[task.name].auc))
        for task in evaluation.tasks
        if task.name in trained
    ]


def _prediction_cards(predictions: Predictions | None) -> list[PredictionCard]:
    if predictions is None:
        return []
    cards = []
    for index, task in enumerate(predictions.tasks):
        curves = prediction_curves(predictions.batches(task))
        shown = []
        if curves.roc is not None and curves.reliability is not None:
            shown = [
                prediction_plots.roc_plot(curves.roc, task=task, auc=curves.auc, color_index=index),
                prediction_plots.reliability_plot(curves.reliability, task=task, color_index=index),
            ]
        cards.append(PredictionCard(task=task, plots=shown, rows=curves.rows, positives=curves.positives))
    return cards
