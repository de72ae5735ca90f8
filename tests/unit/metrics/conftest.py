"""Random partitions: rows go to states, states to other processes, and into one another in any order."""

import pickle
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import numpy as np
import pytest

Partitions = Callable[..., Iterator[Any]]


@pytest.fixture
def partitions() -> Partitions:
    """`partitions(make, columns)` yields 20 states over the same rows, split and merged differently."""

    def states(make: Callable[[], Any], columns: Mapping[str, np.ndarray]) -> Iterator[Any]:
        rng = np.random.default_rng(1)
        rows = len(next(iter(columns.values())))
        for _ in range(20):
            parts = []
            cuts = np.sort(rng.integers(0, rows + 1, size=rng.integers(0, 9)))
            for part in np.split(rng.permutation(rows), cuts):
                state = make()
                for batch in np.array_split(part, rng.integers(1, 4)):
                    state.update(**{name: column[batch] for name, column in columns.items()})
                if rng.random() < 0.5:
                    state = pickle.loads(pickle.dumps(state))
                parts.append(state)
            while len(parts) > 1:
                merged = parts.pop(rng.integers(len(parts)))
                parts[rng.integers(len(parts))].merge(merged)
            yield parts[0]

    return states
