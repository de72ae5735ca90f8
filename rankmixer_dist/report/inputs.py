"""What a run directory holds, read into dataclasses; every file is optional, a missing one reads as None."""

import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.dataset as parquet_dataset
import yaml
from numpy.typing import NDArray

from rankmixer_dist.errors import UserError
from rankmixer_dist.report.slices import SlicedColumn, read_slices
from rankmixer_dist.report.training_log import TrainingLog, read_log


@dataclass(frozen=True)
class RunConfig:
    """config.yaml: its text as it stands and the two keys the page names."""

    text: str
    name: str | None
    seed: int | None


@dataclass(frozen=True)
class PlannedTable:
    """One embedding table of plan.json; `bytes_per_rank` has one entry for each rank of the job."""

    name: str
    rows: int
    dim: int
    module: str
    features: list[str]
    sharding: str
    compute_kernel: str
    ranks: list[int]
    bytes: int
    bytes_per_rank: list[int]
    reason: str


@dataclass(frozen=True)
class DenseCost:
    """Size and arithmetic of the dense part, as plan.json states them."""

    parameters: int
    flops_per_row_forward: int
    flops_per_row_train: int


@dataclass(frozen=True)
class Plan:
    """plan.json: where each table went and why."""

    world_size: int
    tables: list[PlannedTable]
    bytes_per_rank: list[int]
    dense: DenseCost


@dataclass(frozen=True)
class TaskEvaluation:
    """One task of eval.json; None where a figure is undefined, `reachable_*` also where the truth is not known, and
    `pr_auc` in files from before there was one."""

    name: str
    auc: float | None
    auc_low: float | None
    auc_high: float | None
    pr_auc: float | None
    uauc: float | None
    uauc_unweighted: float | None
    logloss: float | None
    ne: float | None
    calibration: float | None
    positives: int
    users_scored: int
    reachable_auc: float | None
    reachable_uauc: float | None


@dataclass(frozen=True)
class TrainedPath:
    """A task scored by the path that trained; `served_gap` is how much higher the served log loss is, as a share."""

    auc: float | None
    logloss: float | None
    served_gap: float | None


@dataclass(frozen=True)
class RoutingEvaluation:
    """What the experts did with the evaluated rows; `trained_path` by task, empty where the paths were not compared."""

    active_ratio: float | None
    dead_experts: int
    gate_scale: float | None
    trained_path: dict[str, TrainedPath]


@dataclass(frozen=True)
class Evaluation:
    """eval.json; `routing` is None for a model without experts, `slices` is empty without columns to slice by."""

    rows: int
    split: str | None
    checkpoint: str | None
    tasks: list[TaskEvaluation]
    routing: RoutingEvaluation | None
    slices: list[SlicedColumn]


@dataclass(frozen=True)
class Predictions:
    """predictions/*.parquet, read one task at a time because all of them need not fit in memory."""

    files: list[str]
    tasks: list[str]

    def batches(self, task: str) -> Iterator[tuple[NDArray[np.floating], NDArray]]:
        """Scores and labels of one task, batch by batch, of the rows whose label is known."""
        score, label = f"score_{task}", f"label_{task}"
        dataset = parquet_dataset.dataset(self.files, format="parquet")
        for batch in dataset.to_batches(columns=[score, label], batch_size=1 << 20):
            labels = batch.column(label).to_numpy(zero_copy_only=False)
            known = labels == labels  # NaN is an unknown label
            yield batch.column(score).to_numpy(zero_copy_only=False)[known], labels[known]


@dataclass(frozen=True)
class RunInputs:
    """Everything the page is made from."""

    directory_name: str
    config: RunConfig | None
    log: TrainingLog | None
    plan: Plan | None
    evaluation: Evaluation | None
    predictions: Predictions | None


def read_run(run_dir: Path) -> RunInputs:
    """Read the files of a run directory that the report shows.

    Raises:
        UserError: no such directory, or a file that does not hold what its contract says.
    """
    if not run_dir.is_dir():
        raise UserError(f"{run_dir}: no such run directory")
    return RunInputs(
        directory_name=run_dir.resolve().name,
        config=_read_config(run_dir / "config.yaml"),
        log=read_log(run_dir / "metrics.jsonl"),
        plan=_read_plan(run_dir / "plan.json"),
        evaluation=_read_evaluation(run_dir / "eval.json"),
        predictions=_find_predictions(run_dir / "predictions"),
    )


def _read_config(path: Path) -> RunConfig | None:
    if not path.is_file():
        return None
    text = path.read_text()
    keys = yaml.safe_load(text) or {}
    return RunConfig(text=text, name=keys.get("name"), seed=keys.get("seed"))


def _read_plan(path: Path) -> Plan | None:
    if not path.is_file():
        return None
    plan = _read_json(path)
    fields = PlannedTable.__dataclass_fields__
    return Plan(
        world_size=plan["world_size"],
        tables=[PlannedTable(**{name: table[name] for name in fields}) for table in plan["tables"]],
        bytes_per_rank=plan["bytes_per_rank"],
        dense=DenseCost(**{name: plan["dense"][name] for name in DenseCost.__dataclass_fields__}),
    )


def _read_evaluation(path: Path) -> Evaluation | None:
    if not path.is_file():
        return None
    evaluation = _read_json(path)
    return Evaluation(
        rows=evaluation["rows"],
        split=evaluation.get("split"),
        checkpoint=evaluation.get("checkpoint"),
        tasks=[_task_evaluation(name, figures) for name, figures in evaluation["tasks"].items()],
        routing=_routing_evaluation(evaluation["routing"]) if "routing" in evaluation else None,
        slices=read_slices(evaluation),
    )


def _routing_evaluation(routing: dict[str, Any]) -> RoutingEvaluation:
    return RoutingEvaluation(
        active_ratio=routing["active_ratio"],
        dead_experts=routing["dead_experts"],
        gate_scale=routing["gate_scale"],
        trained_path={task: TrainedPath(**figures) for task, figures in routing.get("trained_path", {}).items()},
    )


def _task_evaluation(name: str, figures: dict[str, Any]) -> TaskEvaluation:
    same_name = ("auc", "uauc", "uauc_unweighted", "logloss", "ne", "calibration", "positives", "users_scored")
    reachable = figures.get("reachable") or {}
    low, high = figures["auc_ci95"]
    return TaskEvaluation(
        name=name,
        auc_low=low,
        auc_high=high,
        pr_auc=figures.get("pr_auc"),
        reachable_auc=reachable.get("auc"),
        reachable_uauc=reachable.get("uauc"),
        **{field: figures[field] for field in same_name},
    )


def _read_json(path: Path) -> dict[str, Any]:
    try:
        return json.loads(path.read_text())
    except json.JSONDecodeError as error:
        raise UserError(f"{path}: not JSON ({error})") from error


def _find_predictions(folder: Path) -> Predictions | None:
    files = sorted(str(path) for path in folder.glob("*.parquet"))
    if not files:
        return None
    names = parquet_dataset.dataset(files, format="parquet").schema.names
    return Predictions(files=files, tasks=[name.removeprefix("score_") for name in names if name.startswith("score_")])
