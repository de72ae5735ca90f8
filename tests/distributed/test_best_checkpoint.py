"""The best checkpoint by a validation figure is kept and gives that figure again; measuring it changes no step."""

import json

import pytest

from rankmixer_dist.checkpoint.about import read_about
from rankmixer_dist.checkpoint.folder import BEST, checkpoints, pointed, step_of
from rankmixer_dist.config import load_config
from rankmixer_dist.errors import UserError
from rankmixer_dist.train.scoring import single_figures

pytestmark = pytest.mark.thorough

ENGINES = {
    "zero0": ["dense.zero_stage=0"],
    "zero1": ["dense.zero_stage=1"],
    "zero2": ["dense.zero_stage=2"],
    "bf16": ["dense.zero_stage=2", "dense.precision=bf16"],
}
KEEP = {"zero0": 1, "zero1": 9, "zero2": 1, "bf16": 1}
FIGURE = "finish.logloss"
# Learns too fast: the loss on rows to come falls first and rises later.
RUN = ["train.max_steps=24", "sparse.lr=0.5", "dense.lr=0.01", "train.log_every=4", "checkpoint.every=8"]
BY = ["checkpoint.best.split=test", "checkpoint.best.task=finish", "checkpoint.best.metric=logloss"]


@pytest.fixture(scope="module")
def trained(launch, small_config):
    """Every engine's run on two ranks, with a best checkpoint and without, evaluated on two ranks and then on one."""
    runs, evaluations = [], []
    for name, engine in ENGINES.items():
        runs += [
            [f"name=best-{name}", *RUN, *BY, *engine, f"checkpoint.keep={KEEP[name]}"],
            [f"name=plain-{name}", *RUN, *engine],
        ]
        evaluations.append([*runs[-2], "eval.checkpoint=best", "eval.split=test"])
    found = {}
    for ranks, to_train in ((2, runs), (1, [])):
        arguments = (str(small_config), json.dumps(to_train), json.dumps(evaluations))
        ended = launch.forked("tests/distributed/best_cases.py", *arguments, ranks=ranks)
        assert ended.returncode == 0, ended.stderr[-3000:]
        for name in ENGINES:
            path = run_dir(small_config, f"best-{name}") / "eval.json"
            found[name, ranks] = json.loads(path.read_text())
    return found


def run_dir(small_config, name):
    return load_config(small_config, [f"name={name}"]).run_dir


def lines(small_config, name):
    return [json.loads(line) for line in (run_dir(small_config, name) / "metrics.jsonl").read_text().splitlines()]


def test_the_best_is_kept_however_old(small_config, trained):
    every = checkpoints(run_dir(small_config, "best-zero1"))
    figures = {step_of(path): read_about(path).metrics[FIGURE] for path in every}
    assert [*figures] == [8, 16, 24]
    assert figures[16] < figures[24] < figures[8], "the best one was to be neither the first nor the newest"
    for name in ENGINES:
        kept = checkpoints(run_dir(small_config, f"best-{name}"))
        assert pointed(run_dir(small_config, f"best-{name}"), BEST) in kept
        if name != "zero1":
            assert [step_of(path) for path in kept] == [16, 24]
        if name in ("zero0", "zero2"):
            expected = [figures[16], figures[24]]
            assert [read_about(path).metrics[FIGURE] for path in kept] == pytest.approx(expected, abs=1e-6)


@pytest.mark.parametrize("name", ENGINES)
def test_it_gives_the_figures_that_were_measured(small_config, trained, name):
    best = pointed(run_dir(small_config, f"best-{name}"), BEST)
    metrics = read_about(best).metrics
    on_two, on_one = (trained[name, ranks] for ranks in (2, 1))
    assert on_two["checkpoint"] == on_one["checkpoint"] == f"checkpoints/{best.name}"
    assert len(metrics) >= 3 * 6
    assert single_figures(on_two) == metrics
    worst = max(abs(value - metrics[figure]) for figure, value in single_figures(on_one).items())
    print(f"{name}: one rank differs by {worst:.1e}")
    assert worst <= 1e-6


@pytest.mark.parametrize("name", ENGINES)
def test_measuring_changes_no_step(small_config, trained, name):
    with_best, without = lines(small_config, f"best-{name}"), lines(small_config, f"plain-{name}")
    assert [line["step"] for line in without] == [*range(4, 25, 4)]
    assert [line["loss"] for line in with_best] == [line["loss"] for line in without]


def test_a_figure_that_is_missing(small_config):
    best = load_config(small_config, [*BY, "checkpoint.best.metric=auc"]).checkpoint.best
    assert best.is_better({"finish.auc": 0.6}, {"finish.auc": 0.5}) and not best.is_better({}, {"finish.auc": 0.5})
    assert best.is_better({"finish.auc": 0.6}, {}) and not best.is_better({}, {})
    assert not best.is_better({"finish.auc": 0.5}, {"finish.auc": 0.5})


@pytest.mark.parametrize(
    ("override", "words"),
    [
        ("checkpoint.best.task=finsh", "checkpoint.best.task 'finsh' is not one of the tasks: finish, skip, like"),
        ("checkpoint.best.split=tset", "checkpoint.best.split 'tset' is not one of data.splits: test, train"),
        ("checkpoint.best.metric=ucua", "checkpoint.best.metric"),
    ],
)
def test_a_wrong_name_is_one_line(small_config, override, words):
    with pytest.raises(UserError, match=words) as error:
        load_config(small_config, [*BY, override])
    assert "\n" not in str(error.value)
