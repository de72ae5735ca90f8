"""The same checkpoint and rows give the same scores beside training and in evaluate.py, on one rank and on two; and
the slices are what the scores say."""

import itertools
import json

import numpy as np
import pyarrow.parquet as pq
import pytest

from data_pipeline.manifest import read_manifest
from rankmixer_dist.checkpoint.about import read_about
from rankmixer_dist.checkpoint.folder import checkpoints
from rankmixer_dist.config import load_config
from rankmixer_dist.metrics import TaskMetrics
from rankmixer_dist.train.scoring import single_figures
from tests.distributed.agreement_cases import PREDICTIONS

RUN = ["name=agreement", "train.max_steps=30", "train.log_every=10", "sparse.lr=0.2"]
RUN += ["checkpoint.best.split=test", "checkpoint.best.task=finish"]
SLICES = ["user_known", "user_activity", "duration_bucket", "hour", "day"]
TOLERANCE = 1e-6
"""Of a score. Two ranks add the embeddings of a bag in another order than one."""


@pytest.fixture(scope="module")
def config(small_config):
    return load_config(small_config, RUN)


@pytest.fixture(scope="module")
def found(launch, small_config, config):
    """Way of scoring -> its predictions by row id, and eval.json of each evaluate.py."""
    ended = launch.forked("tests/distributed/agreement_cases.py", str(small_config), *RUN, ranks=2)
    assert ended.returncode == 0, ended.stderr[-3000:]
    rows, evaluations = {"beside training": predictions(config.run_dir / PREDICTIONS)}, {}
    for ranks in (1, 2):
        override = f"eval.slices=[{','.join(SLICES)}]"
        ended = launch.forked("launch/evaluate.py", str(small_config), *RUN, override, ranks=ranks)
        assert ended.returncode == 0, ended.stderr[-3000:]
        assert "by user_activity" in ended.stdout and "report: " in ended.stdout
        rows[f"evaluate.py, {ranks} ranks"] = predictions(config.run_dir / "predictions")
        evaluations[ranks] = json.loads((config.run_dir / "eval.json").read_text())
    return rows, evaluations


def predictions(folder):
    return pq.read_table(folder).sort_by("row_id")


def prepared(config, split):
    manifest = read_manifest(config.data.prepared, config.features)
    return pq.read_table([config.data.prepared / shard.path for shard in manifest.splits[split]]).sort_by("row_id")


def test_every_score_is_the_same(config, found):
    rows, _ = found
    row_ids = prepared(config, "test")["row_id"].to_numpy()
    assert len(row_ids) % config.eval.batch_size, "the last batch was to be padded"
    first, *others = rows.values()
    assert len(others) == 2
    for table in rows.values():
        assert np.array_equal(table["row_id"], row_ids)
    for name, table in zip([*rows][1:], others, strict=True):
        for column in first.column_names:
            worst = np.abs(table[column].to_numpy() - first[column].to_numpy()).max()
            assert worst <= (TOLERANCE if column.startswith("score_") else 0), (name, column)
        print(name, max(np.abs(table[c].to_numpy() - first[c].to_numpy()).max() for c in first.column_names))


def test_figures_are_those_measured_beside_training(config, found):
    _, evaluations = found
    measured = read_about(checkpoints(config.run_dir)[-1]).metrics
    assert {"finish.auc", "finish.pr_auc", "like.uauc"} <= measured.keys()
    assert single_figures(evaluations[2]) == measured


def test_figures_differ_by_no_more_than_the_scores_allow(found):
    rows, evaluations = found
    one, two = (evaluations[ranks] for ranks in (1, 2))
    assert one["rows"] == two["rows"]
    scored = rows["evaluate.py, 1 ranks"]
    for task, figures in one["tasks"].items():
        others = two["tasks"][task]
        assert figures["reachable"] == others["reachable"]
        for count in ("positives", "users_scored"):
            assert figures[count] == others[count]
        # A score that moves by `TOLERANCE` can change its place with those within twice that, and with no others.
        scores, labels = (scored[f"{kind}_{task}"].to_numpy() for kind in ("score", "label"))
        negatives = np.sort(scores[labels == 0].astype(np.float64))
        near = [
            np.searchsorted(negatives, score + 2 * TOLERANCE, "right")
            - np.searchsorted(negatives, score - 2 * TOLERANCE)
            for score in scores[labels == 1].astype(np.float64)
        ]
        allowed = sum(near) / (len(negatives) * len(near))
        assert allowed < 1e-3
        assert figures["auc"] == pytest.approx(others["auc"], abs=allowed)
        surest = float(min(scores.min(), 1 - scores.max())) - TOLERANCE
        assert figures["logloss"] == pytest.approx(others["logloss"], abs=TOLERANCE / surest)


def test_slices_are_the_figures_of_their_rows(config, found):
    rows, evaluations = found
    scored, data = rows["evaluate.py, 2 ranks"], prepared(config, "test")
    users, counts = np.unique(prepared(config, "train")["user_id"], return_counts=True)
    known = dict(zip(users.tolist(), counts.tolist(), strict=True))
    low, middle = np.sort(counts)[[-(-len(counts) // 3) - 1, -(-2 * len(counts) // 3) - 1]]
    times = [known.get(user, 0) for user in scored["user_id"].to_pylist()]
    cuts = config.features.features["duration_bucket"].boundaries
    buckets = ["< 7", *(f"{low:g} to < {high:g}" for low, high in itertools.pairwise(cuts)), "≥ 300"]
    expected = {
        "user_known": ["known" if n else "new" for n in times],
        "user_activity": [
            "none" if not n else "low" if n <= low else "middle" if n <= middle else "high" for n in times
        ],
        "hour": ["missing" if key is None else str(key) for key in data["hour"].to_pylist()],
        "day": ["2026-01-07"] * len(times),
        "duration_bucket": ["missing" if key is None else buckets[key] for key in data["duration_bucket"].to_pylist()],
    }
    assert set(expected["user_activity"]) >= {"low", "middle", "high"}
    slices = evaluations[2]["slices"]
    assert [*slices] == [*evaluations[2]["slice_legends"]] == SLICES
    for column, values in expected.items():
        assert slices[column].keys() == set(values)
        for value in slices[column]:
            mine = np.array(values) == value
            assert slices[column][value]["rows"] == mine.sum()
            for task in config.features.tasks:
                metrics = TaskMetrics()
                metrics.update(
                    *(scored[name].to_numpy()[mine] for name in (f"score_{task}", f"label_{task}", "user_id"))
                )
                figures = slices[column][value]["tasks"][task]
                assert figures.pop("rows") == mine.sum()
                assert figures == metrics.compute()


def test_slices_do_not_depend_on_the_ranks(found):
    _, evaluations = found
    for column in SLICES:
        one, two = (evaluations[ranks]["slices"][column] for ranks in (1, 2))
        assert [(value, part["rows"]) for value, part in one.items()] == [(v, part["rows"]) for v, part in two.items()]
        for value, part in one.items():
            for task, figures in part["tasks"].items():
                assert figures["positives"] == two[value]["tasks"][task]["positives"]
                assert figures["logloss"] == pytest.approx(two[value]["tasks"][task]["logloss"], abs=1e-4)


def test_the_report_shows_them(config, found):
    page = (config.run_dir / "report.html").read_text()
    assert "agreement" in page
    for column in SLICES:
        assert f"By {column}" in page
