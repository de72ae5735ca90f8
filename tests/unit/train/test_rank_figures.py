"""The rank that holds the others up is told where it costs them a quarter of a step."""

from typing import Any

import pytest

from rankmixer_dist.train.progress import TrainProgress
from rankmixer_dist.train.rank_figures import stands_out


def figure(median: float, largest: float) -> dict[str, Any]:
    return {"median": median, "max": largest, "rank": 3, "host": "h1"}


@pytest.mark.parametrize(
    ("ranks", "told"),
    [
        ({}, ""),
        ({"own_s": figure(0.4, 0.49), "data_wait_s": figure(0.0, 0.24), "mem_gb": figure(2.0, 2.9)}, ""),
        ({"data_wait_s": figure(0.001, 0.6)}, "rank 3 on h1 waits for data 600 ms a step, the median rank 1 ms"),
        (
            {"own_s": figure(0.4, 0.7), "data_wait_s": figure(0.0, 0.2)},
            "rank 3 on h1 computes 700 ms a step, the median rank 400 ms",
        ),
        (
            {"own_s": figure(0.4, 0.4), "mem_gb": figure(2.0, 3.1)},
            "rank 3 on h1 takes 3.1 GiB, the median rank 2.0 GiB",
        ),
    ],
)
def test_what_stands_out(ranks, told):
    assert stands_out(ranks, step_s=1.0) == told


def test_a_steps_own_time_is_told_once_a_measurement(capsys):
    line = {"step": 1, "loss": 0.5, "mfu": None, "samples_per_s": 1.0, "data_wait_share": 0.0, "skipped_steps": 0}
    line |= {"step_s": 1.0}
    progress = TrainProgress(total_steps=9, done_steps=0, enabled=True)
    for largest in (0.8, 0.8, 0.9):
        progress.show(line | {"ranks": {"own_s": figure(0.4, largest)}})
    told = capsys.readouterr().err.splitlines()
    assert ["computes" in text for text in told] == [True, False, True]
