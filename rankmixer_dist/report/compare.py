"""Several runs side by side: those that differ by seed alone are one group, with mean and spread."""

import math
import statistics
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np

from rankmixer_dist.config import MANNER
from rankmixer_dist.config.yaml_text import read_resolved
from rankmixer_dist.errors import UserError
from rankmixer_dist.report.inputs import DenseCost, Evaluation, RunInputs, read_run
from rankmixer_dist.report.paired_runs import p_values
from rankmixer_dist.there import is_file

Metric = Literal["auc", "uauc"]
METRICS: tuple[Metric, ...] = ("auc", "uauc")
SIZE = ("parameters", "FLOPs a row", "rows/s")
ACTIVE = "active experts"


@dataclass(frozen=True)
class Spread:
    """Mean over seeds, the lowest and the highest."""

    mean: float
    low: float
    high: float

    @classmethod
    def of(cls, values: Sequence[float]) -> "Spread":
        """Of at least one value."""
        return cls(statistics.fmean(values), min(values), max(values))


@dataclass(frozen=True)
class Group:
    """Runs of one config under several seeds.

    label: what sets it apart from the other groups. by_seed: seed -> its run.
    """

    label: str
    by_seed: Mapping[int, RunInputs]

    @property
    def dense(self) -> DenseCost | None:
        """Parameters and FLOPs of the dense model."""
        plan = next(iter(self.by_seed.values())).plan
        return None if plan is None else plan.dense

    @property
    def rows_per_s(self) -> float | None:
        """Median of all log lines but each run's first, which still warms up."""
        rates = [run.log.columns["samples_per_s"][1:] for run in self.by_seed.values() if run.log is not None]
        return float(np.median(np.concatenate(rates))) if rates and sum(map(len, rates)) else None

    @property
    def active_ratio(self) -> Spread | None:
        """Share of its experts that a row uses, over the seeds; None for a model without experts."""
        routings = [run.evaluation.routing for run in self.by_seed.values() if run.evaluation is not None]
        return _spread([None if routing is None else routing.active_ratio for routing in routings])

    def figure(self, task: str, metric: Metric) -> Spread | None:
        """A task's figure over the seeds; None if it is undefined in one of them."""
        return _spread([_figure(run, task, metric) for run in self.by_seed.values()])

    def difference(self, other: "Group", task: str, metric: Metric) -> Spread | None:
        """This group's figure less the other's, seed by seed where both have run it; None if they share no seed."""
        pairs = [(self.by_seed[seed], other.by_seed[seed]) for seed in self.by_seed if seed in other.by_seed]
        values = [(_figure(mine, task, metric), _figure(theirs, task, metric)) for mine, theirs in pairs]
        return _spread([None if None in pair else pair[0] - pair[1] for pair in values])  # type: ignore[operator]

    def p_values(self, other: "Group", task: str) -> dict[str, Spread | None]:
        """By metric, how likely chance alone makes such differences, seed by seed: see `paired_runs.p_values`."""
        shared = [seed for seed in self.by_seed if seed in other.by_seed]
        found = [p_values(self.by_seed[seed], other.by_seed[seed], task) for seed in shared]
        return {metric: _spread([_defined(each[metric]) for each in found]) for metric in METRICS}


@dataclass(frozen=True)
class Comparison:
    """Groups in the order in which their first runs were named, all scored on the same rows."""

    tasks: tuple[str, ...]
    split: str | None
    rows: int
    groups: list[Group]

    @property
    def size_columns(self) -> tuple[str, ...]:
        """What `Line.size` holds: active experts only where a model has experts."""
        return (*SIZE, ACTIVE) if any(group.active_ratio is not None for group in self.groups) else SIZE


def compare(run_dirs: Sequence[Path]) -> Comparison:
    """Reads runs that have been evaluated.

    Raises:
        UserError: a run is not there or not evaluated, was scored on other rows, or is the second of its seed.
    """
    runs = [(read_run(path), _flat(path)) for path in run_dirs]
    first = _evaluation(run_dirs[0], runs[0][0])
    members: list[tuple[dict[str, Any], dict[int, RunInputs]]] = []
    for path, (run, keys) in zip(run_dirs, runs, strict=True):
        evaluation = _evaluation(path, run)
        if (evaluation.rows, evaluation.split) != (first.rows, first.split):
            raise UserError(
                f"{path}: scored on {evaluation.rows:,} rows of {evaluation.split!r}, {run_dirs[0]} on {first.rows:,} "
                f"of {first.split!r}; evaluate both on the same split"
            )
        content = {key: value for key, value in keys.items() if not _says_how(key)}
        by_seed = next((seeds for other, seeds in members if other == content), None)
        if by_seed is None:
            by_seed = {}
            members.append((content, by_seed))
        if keys["seed"] in by_seed:
            raise UserError(
                f"{path}: the config and seed {keys['seed']} of {by_seed[keys['seed']].directory_name} again"
            )
        by_seed[keys["seed"]] = run
    labels = _labels([content for content, _ in members])
    groups = [Group(label, by_seed) for label, (_, by_seed) in zip(labels, members, strict=True)]
    return Comparison(tuple(task.name for task in first.tasks), first.split, first.rows, groups)


@dataclass(frozen=True)
class Line:
    """A group in text: `figures` has AUC and UAUC of each task in turn, `size` the comparison's `size_columns`."""

    label: str
    seeds: str
    figures: list[str]
    size: list[str]


def lines_of(comparison: Comparison, *, differences: bool, tested: bool = False) -> Iterator[Line]:
    """The groups in text; with `differences` all but the first less the first, seed by seed; `tested`, with p-values.

    Raises:
        UserError: as `paired_runs.p_values`.
    """
    reference = comparison.groups[0]
    for group in comparison.groups:
        less = reference if differences and group is not reference else None
        figures = [cell for task in comparison.tasks for cell in _cells(group, less, task, tested=tested)]
        dense, rate = group.dense, group.rows_per_s
        size = ["–", "–"] if dense is None else [f"{dense.parameters:,}", f"{dense.flops_per_row_forward:,}"]
        size.append("–" if rate is None else f"{rate:,.0f}")
        if ACTIVE in comparison.size_columns:
            size.append(_text(group.active_ratio, ".1%"))
        seeds = group.by_seed.keys() if less is None else group.by_seed.keys() & less.by_seed.keys()
        yield Line(group.label, str(len(seeds)), figures, size)


def markdown(comparison: Comparison, lines: Iterable[Line]) -> str:
    """The comparison as a Markdown table, a row a group."""
    figures = [f"{task} {metric.upper()}" for task in comparison.tasks for metric in METRICS]
    head = ["", "seeds", *figures, *comparison.size_columns]
    rows = [head, ["---"] * len(head)]
    for line in lines:
        rows.append([line.label, line.seeds, *line.figures, *line.size])
    return "".join(f"| {' | '.join(cells)} |\n" for cells in rows)


def _cells(group: Group, less: Group | None, task: str, *, tested: bool) -> Iterator[str]:
    """A task's figure by each of METRICS, or its difference, with its p-value where `tested`."""
    if less is None:
        yield from (_text(group.figure(task, metric), ".4f") for metric in METRICS)
        return
    chances = group.p_values(less, task) if tested else {}
    for metric in METRICS:
        difference = _text(group.difference(less, task, metric), "+.4f")
        yield f"{difference}, p {_range(chances[metric], '.2g')}" if tested else difference


def _text(spread: Spread | None, form: str) -> str:
    if spread is None:
        return "–"
    mean, low, high = (f"{value:{form}}" for value in (spread.mean, spread.low, spread.high))
    return mean if low == high else f"{mean} ({low} to {high})"


def _range(spread: Spread | None, form: str) -> str:
    """Lowest to highest: a mean of p-values says nothing."""
    if spread is None:
        return "–"
    low, high = f"{spread.low:{form}}", f"{spread.high:{form}}"
    return low if low == high else f"{low} to {high}"


def _defined(value: float) -> float | None:
    return None if math.isnan(value) else value


def _spread(values: Sequence[float | None]) -> Spread | None:
    known = [value for value in values if value is not None]
    return Spread.of(known) if known and len(known) == len(values) else None


def _figure(run: RunInputs, task: str, metric: Metric) -> float | None:
    assert run.evaluation is not None
    return next((getattr(each, metric) for each in run.evaluation.tasks if each.name == task), None)


def _evaluation(path: Path, run: RunInputs) -> Evaluation:
    if run.evaluation is None:
        raise UserError(f"{path}: not evaluated; run launch/evaluate.py with its config first")
    return run.evaluation


def _flat(run_dir: Path) -> dict[str, Any]:
    path = run_dir / "config.yaml"
    if not is_file(path):
        raise UserError(f"{run_dir}: no config.yaml; this is no run directory")
    keys = dict(_pairs(read_resolved(path), ""))
    if not isinstance(keys.get("seed"), int):
        raise UserError(f"{path}: seed is {keys.get('seed')!r}, not a number; this is not the config of a run")
    return keys


def _pairs(value: Any, key: str) -> Iterator[tuple[str, Any]]:
    if isinstance(value, dict) and value:
        for name, item in value.items():
            yield from _pairs(item, f"{key}.{name}" if key else name)
    else:
        yield key, value


def _says_how(key: str) -> bool:
    """Whether a key has no part in what a run learns, or is what a group's runs may differ by."""
    return key in ("name", "seed") or any(key == manner or key.startswith(f"{manner}.") for manner in MANNER)


def _labels(contents: Sequence[Mapping[str, Any]]) -> list[str]:
    """What sets each config apart: the value of the one key that differs, or all that are not the reference's."""
    keys = list(dict.fromkeys(key for content in contents for key in content))
    differing = [key for key in keys if any(content.get(key) != contents[0].get(key) for content in contents)]
    if len(differing) == 1:
        return [str(content.get(differing[0])) for content in contents]
    labels = []
    for content in contents:
        own = [f"{key}={content.get(key)}" for key in differing if content.get(key) != contents[0].get(key)]
        labels.append(", ".join(own) or "reference")
    return labels
