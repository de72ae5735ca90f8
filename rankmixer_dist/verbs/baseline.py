"""Fits scikit-learn's logistic regression on a run's prepared rows and scores the same split: the floor to beat."""

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa

from data_pipeline.id_range import id_beyond_table
from data_pipeline.reading import find_prepared, open_prepared
from data_pipeline.shards import read_rows
from data_pipeline.table_rows import with_table_rows
from rankmixer_dist.command_line import config_parser
from rankmixer_dist.config import RunConfig, load_config
from rankmixer_dist.errors import UserError, nearest
from rankmixer_dist.metrics import TaskMetrics
from rankmixer_dist.schema import LABEL_PREFIX, USER_ID, IdFeature, NumericFeature, Schema
from rankmixer_dist.small_file import require_place
from rankmixer_dist.train.run_dir import write_json

if TYPE_CHECKING:
    from scipy import sparse
    from sklearn.linear_model import LogisticRegression

PENALTIES = (0.01, 0.03, 0.1, 0.3, 1.0)
HELD_OUT = 0.25

USAGE = """\
python launch/baseline.py configs/kuairand_pure.yaml --cross user:author_id --cross user:duration_bucket

Every id is a one-hot column, every bag and sequence a multi-hot one scaled to length one, numerics are standardised,
and each --cross adds the products of two id features. The penalty of each task is chosen on the last quarter of the
training rows, then the model is fitted on all of them. Prints the figures and writes baseline.json (baseline_ids.json
with --ids-only) into the run directory.
"""


def main(arguments: list[str]) -> None:
    """Parses the command line, fits and scores."""
    parser = config_parser("baseline", __doc__, USAGE)
    parser.add_argument("--cross", action="append", default=[], metavar="A:B", help="cross of two id features")
    parser.add_argument("--ids-only", action="store_true", help="leave the numeric features out")
    parsed = parser.parse_args(arguments)
    config = load_config(parsed.config, parsed.overrides)
    require_place(config.run_dir, "runs")
    crosses = [_crossed(config, cross) for cross in parsed.cross]
    splits = [*config.train.splits, config.eval.split]
    # scikit-learn is loaded after this, when all that the command line and the manifest tell is known to be good.
    manifest = open_prepared(config, splits, rank=0, world_size=1, manifest=find_prepared(config, splits))
    train, test = (
        pa.concat_tables(
            _rows(config.data.prepared / shard.path, config.features)
            for split in splits
            for shard in manifest.splits[split]
        )
        for splits in (config.train.splits, (config.eval.split,))
    )
    numerics = {} if parsed.ids_only else manifest.numerics
    from scipy import sparse

    columns = list(_columns(config, train, test, numerics, crosses))
    x_train, x_test = (sparse.hstack(side, format="csr") for side in zip(*columns, strict=True))
    print(f"{x_train.shape[0]:,} rows to fit, {x_test.shape[0]:,} to score, {x_train.shape[1]:,} columns")
    result: dict[str, Any] = {"rows": test.num_rows, "split": config.eval.split, "tasks": {}}
    for task in config.features.tasks:
        label = LABEL_PREFIX + task
        known, scored = (~np.isnan(table[label].to_numpy()) for table in (train, test))
        labels = train[label].to_numpy()[known]
        if len(np.unique(labels)) < 2 or not scored.any():
            ones, zeros = labels.sum(), (labels == 0).sum()
            print(f"{task:12} no baseline: {ones:,.0f} labels to fit are 1, {zeros:,} are 0; {scored.sum():,} to score")
            continue
        penalty, scores = _fit(x_train[known], labels, x_test[scored])
        metrics = TaskMetrics()
        metrics.update(scores, test[label].to_numpy()[scored], test[USER_ID].to_numpy()[scored])
        figures = {**metrics.compute(), "C": penalty}
        result["tasks"][task] = figures
        auc, uauc, ne = ("–" if figures[name] is None else f"{figures[name]:.4f}" for name in ("auc", "uauc", "ne"))
        print(f"{task:12} C {penalty:<5g} AUC {auc}  UAUC {uauc}  NE {ne}")
    config.run_dir.mkdir(parents=True, exist_ok=True)
    write_json(config.run_dir / ("baseline_ids.json" if parsed.ids_only else "baseline.json"), result)


def _rows(path: Path, schema: Schema) -> pa.Table:
    """A shard's rows, their ids as rows of tables that are there: SciPy does not look at those of multi-hot columns."""
    rows = read_rows(path)
    beyond = id_beyond_table(rows, schema)
    if beyond is not None:
        raise UserError(f"{path}: {beyond}; prepare the data again")
    return with_table_rows(rows, schema)


def _crossed(config: RunConfig, text: str) -> tuple[str, str]:
    """The two id features of `--cross A:B`."""
    known = config.features.of_kind(IdFeature)
    left, colon, right = text.partition(":")
    for name in (left, right):
        if not colon or name not in known:
            raise UserError(f"--cross {text}: names no two id features, as A:B; {name!r} is none{nearest(name, known)}")
    return left, right


def _columns(
    config: RunConfig, train: pa.Table, test: pa.Table, numerics: Any, crosses: list[tuple[str, str]]
) -> "Iterator[tuple[sparse.csr_matrix, sparse.csr_matrix]]":
    schema = config.features
    for name, feature in schema.features.items():
        if isinstance(feature, NumericFeature):
            statistics = numerics.get(name)
            if statistics is None:
                continue
            yield tuple(_numeric(table[name].to_numpy(), statistics.mean, statistics.std) for table in (train, test))
        elif isinstance(feature, IdFeature):
            rows = schema.tables[feature.table].rows
            yield tuple(_one_hot(table[name].to_numpy(), rows) for table in (train, test))
        else:
            rows = schema.tables[feature.table].rows
            yield tuple(_multi_hot(table[name].combine_chunks(), rows) for table in (train, test))
    for left, right in crosses:
        keys = [_cross(table[left].to_numpy(), table[right].to_numpy()) for table in (train, test)]
        known, places = np.unique(keys[0], return_inverse=True)
        found = np.searchsorted(known, keys[1]).clip(max=len(known) - 1)
        unseen = known[found] != keys[1]
        yield _one_hot(places, len(known)), _one_hot(np.where(unseen, -1, found), len(known))


def _numeric(values: np.ndarray, mean: float, std: float) -> "sparse.csr_matrix":
    from scipy import sparse

    missing = np.isnan(values)
    scaled = np.where(missing, 0.0, (values - mean) / (std or 1.0))
    return sparse.csr_matrix(np.stack([scaled, missing], axis=1))


def _one_hot(ids: np.ndarray, count: int) -> "sparse.csr_matrix":
    """One column an id; a negative id has none."""
    from scipy import sparse

    rows = np.flatnonzero(ids >= 0)
    return sparse.csr_matrix((np.ones(len(rows)), (rows, ids[rows])), shape=(len(ids), count))


def _multi_hot(lists: pa.ListArray, count: int) -> "sparse.csr_matrix":
    """Counts of each id, each row scaled to length one."""
    from scipy import sparse

    offsets = lists.offsets.to_numpy()
    values = lists.values.to_numpy()[offsets[0] : offsets[-1]]
    matrix = sparse.csr_matrix((np.ones(len(values)), values, offsets - offsets[0]), shape=(len(lists), count))
    matrix.sum_duplicates()
    norms = np.sqrt(np.asarray(matrix.multiply(matrix).sum(axis=1)).ravel())
    return sparse.diags(1 / np.maximum(norms, 1e-12)) @ matrix


def _cross(left: np.ndarray, right: np.ndarray) -> np.ndarray:
    return left.astype(np.int64) << 32 | right.astype(np.int64)


def _fit(x_train: "sparse.csr_matrix", labels: np.ndarray, x_test: "sparse.csr_matrix") -> tuple[float, np.ndarray]:
    """The penalty that is best on the last rows in time, and the test scores of a fit on all rows with it."""
    from sklearn.linear_model import LogisticRegression

    cut = int(len(labels) * (1 - HELD_OUT))

    def fit(penalty: float, rows: slice) -> "LogisticRegression":
        return LogisticRegression(C=penalty, solver="lbfgs", max_iter=300).fit(x_train[rows], labels[rows])

    def held_out(penalty: float) -> float:
        scores = fit(penalty, slice(0, cut)).predict_proba(x_train[cut:])[:, 1]
        metrics = TaskMetrics()
        metrics.update(scores, labels[cut:], np.zeros(len(scores), dtype=np.int64))
        return metrics.compute()["auc"] or 0.0

    # Of a rare class all examples may be among the rows held out; then there is nothing to choose by.
    best = max(PENALTIES, key=held_out) if len(np.unique(labels[:cut])) == 2 else 1.0
    return best, fit(best, slice(None)).predict_proba(x_test)[:, 1]
