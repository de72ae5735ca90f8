"""ValueCounts: how often each value occurs, whatever the pieces it came in."""

import pickle
from collections import Counter

import numpy as np
import pytest

from rankmixer_dist.metrics import ValueCounts
from rankmixer_dist.metrics import value_counts as module


@pytest.mark.parametrize("seed", range(10))
def test_counts_are_those_of_a_loop(seed: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_WAITING", 40)  # so that there are several merges
    rng = np.random.default_rng(seed)
    ends = np.iinfo(np.int64)
    values = np.concatenate([rng.integers(-50, 50, 700), [ends.min, ends.max, ends.max]])
    states = []
    for part in np.array_split(rng.permutation(values), rng.integers(1, 9)):
        states.append(ValueCounts())
        for piece in np.array_split(part, 5):
            states[-1].update(piece)
    total = ValueCounts()
    for state in states:
        total.merge(pickle.loads(pickle.dumps(state)))
    expected = Counter(values.tolist())
    assert dict(zip(total.values.tolist(), total.counts.tolist(), strict=True)) == expected
    assert total.values.tolist() == sorted(expected)
    asked = rng.integers(-100, 100, 60)
    assert total.of(asked).tolist() == [expected[value] for value in asked.tolist()]


def test_without_rows_nothing_occurs() -> None:
    state = ValueCounts()
    state.update(np.empty(0, np.int64))
    assert len(state.values) == len(state.counts) == 0
    assert state.of(np.array([0, 5])).tolist() == [0, 0]
