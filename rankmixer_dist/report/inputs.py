"""What a run directory holds, read into dataclasses; every file is optional, a missing one reads as None."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.dataset as parquet_dataset
from numpy.typing import NDArray
from pydantic import ValidationError

from rankmixer_dist.config.yaml_text import read_resolved
from rankmixer_dist.errors import UserError, one_line
from rankmixer_dist.report.contract import Count, from_file
from rankmixer_dist.report.slices import SlicedColumn, read_slices
from rankmixer_dist.report.training_log import TrainingLog, read_log
from rankmixer_dist.small_file import read_json, read_text
from rankmixer_dist.there import is_file, is_folder, matching


@from_file
class RunConfig:
    """config.yaml: its text as it stands and the two keys the page names."""

    text: str
    name: str | None
    seed: Count | None


@from_file
class PlannedTable:
    """One embedding table of plan.json; `bytes_per_rank` has one entry for each rank of the job."""

    name: str
    rows: Count
    dim: Count
    module: str
    features: list[str]
    sharding: str
    compute_kernel: str
    ranks: list[Count]
    bytes: Count
    bytes_per_rank: list[Count]
    reason: str


@from_file
class DenseCost:
    """Size and arithmetic of the dense part, as plan.json states them."""

    parameters: Count
    flops_per_row_forward: Count
    flops_per_row_train: Count


@from_file
class Plan:
    """plan.json: where each table went and why; `hosts` with their ranks, empty in older files."""

    world_size: Count
    tables: list[PlannedTable]
    bytes_per_rank: list[Count]
    dense: DenseCost
    hosts: dict[str, list[Count]]


@from_file
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
    positives: Count
    users_scored: Count
    reachable_auc: float | None
    reachable_uauc: float | None


@from_file
class TrainedPath:
    """A task scored by the path that trained; `served_gap` is how much higher the served log loss is, as a share."""

    auc: float | None
    logloss: float | None
    served_gap: float | None


@from_file
class RoutingEvaluation:
    """What the experts did with the evaluated rows; `trained_path` by task, empty where the paths were not compared."""

    active_ratio: float | None
    dead_experts: Count
    gate_scale: float | None
    trained_path: dict[str, TrainedPath]


@from_file
class Evaluation:
    """eval.json; `routing` is None for a model without experts, `slices` is empty without columns to slice by."""

    rows: Count
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
        with _readable(self.files):
            dataset = parquet_dataset.dataset(self.files, format="parquet")
            for batch in dataset.to_batches(columns=[score, label], batch_size=1 << 20):
                labels = batch.column(label).to_numpy(zero_copy_only=False)
                known = labels == labels  # NaN is an unknown label
                yield batch.column(score).to_numpy(zero_copy_only=False)[known], labels[known]

    def columns(self, names: Sequence[str]) -> dict[str, NDArray]:
        """Columns of all rows, in the order of the files; a row without a value holds NaN.

        Raises:
            UserError: the files lack one, or cannot be read.
        """
        with _readable(self.files):
            table = parquet_dataset.dataset(self.files, format="parquet").to_table(columns=[*names])
            return {name: table.column(name).to_numpy() for name in names}


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
    if not is_folder(run_dir):
        raise UserError(f"{run_dir}: no such run directory")
    config, log, plan = read_training(run_dir)
    return RunInputs(
        directory_name=run_dir.resolve().name,
        config=config,
        log=log,
        plan=plan,
        evaluation=_read_evaluation(run_dir / "eval.json"),
        predictions=_find_predictions(run_dir / "predictions"),
    )


def read_training(run_dir: Path) -> tuple[RunConfig | None, TrainingLog | None, Plan | None]:
    """What training has left of it: the config, the log and the plan; raises as `read_run` does."""
    return (
        _read_config(run_dir / "config.yaml"),
        read_log(run_dir / "metrics.jsonl"),
        _read_plan(run_dir / "plan.json"),
    )


def _read_config(path: Path) -> RunConfig | None:
    if not is_file(path):
        return None
    keys = read_resolved(path)
    with _kept(path, "put back what was there"):
        return RunConfig(text=read_text(path), name=keys.get("name"), seed=keys.get("seed"))


def _read_plan(path: Path) -> Plan | None:
    if not is_file(path):
        return None
    plan = read_json(path)
    fields = PlannedTable.__dataclass_fields__
    with _kept(path, "the run's next start writes it anew"):
        return Plan(
            world_size=plan["world_size"],
            tables=[PlannedTable(**{name: table[name] for name in fields}) for table in plan["tables"]],
            bytes_per_rank=plan["bytes_per_rank"],
            dense=DenseCost(**{name: plan["dense"][name] for name in DenseCost.__dataclass_fields__}),
            hosts=plan.get("hosts", {}),
        )


def _read_evaluation(path: Path) -> Evaluation | None:
    if not is_file(path):
        return None
    evaluation = read_json(path)
    with _kept(path, "launch/evaluate.py writes it anew"):
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


def _find_predictions(folder: Path) -> Predictions | None:
    files = sorted(str(path) for path in matching(folder, "*.parquet") if is_file(path))
    if not files:
        return None
    with _readable(files):
        columns = parquet_dataset.dataset(files, format="parquet").schema
    tasks = [name.removeprefix("score_") for name in columns.names if name.startswith("score_")]
    for name in (f"{kind}_{task}" for task in tasks for kind in ("score", "label")):
        if name not in columns.names or not pa.types.is_floating(columns.field(name).type):
            raise UserError(f"{folder}: no column {name} of numbers; launch/evaluate.py writes these files anew")
    return Predictions(files=files, tasks=tasks)


@contextmanager
def _kept(path: Path, mend: str) -> Iterator[None]:
    """Turns content that breaks a file's contract into a line that names the file."""
    try:
        yield
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        problem = error.errors()[0] if isinstance(error, ValidationError) else None
        said = one_line(error) if problem is None else f"{'.'.join(map(str, problem['loc']))}: {problem['msg']}"
        raise UserError(
            f"{path}: not what a run writes ({type(error).__name__}: {said}); move it away, {mend}"
        ) from error


@contextmanager
def _readable(files: list[str]) -> Iterator[None]:
    """Names the folder of predictions that cannot be read."""
    try:
        yield
    except (pa.ArrowException, OSError) as error:
        folder = Path(files[0]).parent
        raise UserError(f"{folder}: cannot be read ({one_line(error)}); launch/evaluate.py writes it anew") from error
