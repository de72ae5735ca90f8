"""evaluate.py leaves experts on the ranks that share them out, and scores as one rank that holds all of them does."""

import json

import numpy as np
import pyarrow.parquet as pq
import pytest

from rankmixer_dist.config import load_config
from tests.distributed.agreement_cases import HELD, PREDICTIONS

RUN = ["name=scored_experts", "train.max_steps=20", "train.log_every=10", "parallel.expert_size=2"]
RUN += ["model.rankmixer.hidden_ratio=0.5", "model.rankmixer.moe.kind=dtsi", "model.rankmixer.moe.num_experts=4"]
TOLERANCE = 1e-6
"""Of a score. Ranks that share out the tokens pool them in another order."""


@pytest.fixture(scope="module")
def config(small_config):
    return load_config(small_config, RUN)


@pytest.fixture(scope="module")
def found(launch, small_config, config):
    """Way of scoring -> its predictions by row id, and eval.json of evaluate.py on as many ranks."""
    ended = launch.forked("tests/distributed/agreement_cases.py", str(small_config), *RUN, ranks=2)
    assert ended.returncode == 0, ended.stderr[-3000:]
    rows, evaluations = {"beside training": predictions(config.run_dir / PREDICTIONS)}, {}
    for ranks in (1, 2):
        ended = launch.forked("launch/evaluate.py", str(small_config), *RUN, ranks=ranks)
        assert ended.returncode == 0, ended.stderr[-3000:]
        rows[f"{ranks} ranks"] = predictions(config.run_dir / "predictions")
        evaluations[ranks] = json.loads((config.run_dir / "eval.json").read_text())
    return rows, evaluations


def predictions(folder):
    return pq.read_table(folder).sort_by("row_id")


def test_a_rank_holds_its_tokens_experts_alone(config, found):
    held = [json.loads((config.run_dir / HELD.format(rank=rank)).read_text()) for rank in (0, 1)]
    assert held[0] == held[1]
    experts = [size for name, size in held[0].items() if ".experts." in name]
    # T E experts of D x F, F x D and their biases, two blocks, half on each rank.
    hidden, width, tokens = 32, 64, 8
    assert sum(experts) == 2 * tokens * 4 * (2 * width * hidden + hidden + width) // 2


def test_every_score_is_the_same(found):
    rows, _ = found
    whole = rows.pop("1 ranks")
    assert len(rows) == 2
    for name, table in rows.items():
        for column in whole.column_names:
            worst = np.abs(table[column].to_numpy() - whole[column].to_numpy()).max()
            print(name, column, worst)
            assert worst <= (TOLERANCE if column.startswith("score_") else 0), (name, column)


def test_both_paths_and_what_the_experts_did_are_the_same(found):
    _, evaluations = found
    one, two = (evaluations[ranks]["routing"] for ranks in (1, 2))
    assert one["active"].keys() == two["active"].keys() and len(one["active"]) == 16
    assert list(two["active"].values()) == pytest.approx(list(one["active"].values()), rel=1e-3)
    assert two["gate_scale"] == pytest.approx(one["gate_scale"], rel=1e-5)
    for task, figures in one["trained_path"].items():
        assert two["trained_path"][task]["logloss"] == pytest.approx(figures["logloss"], rel=1e-6)
        assert figures["served_gap"] != 0
