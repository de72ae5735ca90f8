"""What the groups of some batches share: which rows begin one, what rides on them, and what each row sees of it."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
import torch

from data_pipeline.groups import UserSide, first_rows, items_of, visible
from rankmixer_dist.batch import Groups
from rankmixer_dist.schema import GROUP_START


@dataclass(frozen=True)
class Shared:
    """The groups of R rows, of which each batch begins one too.

    Attributes:
        rows: R.
        at: int64 [G], the row that begins each group.
        riding: user-side features with ids, a value a group; of events those that a row of it sees in its batch.
        shown: by sequence, how many of these each row may see, int64 [R].
        each_row: user-side columns of one value, a value a row.
    """

    rows: int
    at: np.ndarray
    riding: Mapping[str, pa.Array]
    shown: Mapping[str, np.ndarray]
    each_row: Mapping[str, pa.Array]


class SharedSide:
    """Finds what rows of batches share.

    Args:
        ids: features with ids, in the order of `Batch.ids`.
        rows: of a batch.
    """

    def __init__(self, ids: Sequence[str], side: UserSide, *, rows: int) -> None:
        self._side, self._rows = side, rows
        self._riders = tuple(name for name in ids if name in side)
        self._newest = {name: newest for name in self._riders if (newest := side[name]) is not None}

    def find(self, columns: Mapping[str, pa.Array]) -> Shared:
        """Of rows whose first one begins a group; raises `pa.ArrowInvalid` where it does not."""
        start = columns[GROUP_START]
        first = first_rows(start)
        begins = start.to_numpy(zero_copy_only=False).copy()
        begins[:: self._rows] = True
        at = np.flatnonzero(begins)
        source = first[at]  # of a group that a batch cuts it is a row before
        held, group = pa.array(source), np.cumsum(begins) - 1
        riding, shown = {}, {}
        for name in self._riders:
            if name not in self._newest:
                riding[name] = columns[name].take(held)
                continue
            shown_R = columns[visible(name)].to_numpy().astype(np.int64)
            # In a group they ascend: the first row begins with the oldest event, the last one ends with the newest.
            oldest = shown_R[at] - np.minimum(shown_R[at], self._newest[name])
            last = np.append(at[1:], len(first)) - 1
            riding[name] = items_of(columns[name], source, oldest, shown_R[last] - oldest)
            shown[name] = shown_R - oldest[group]
        single = (name for name in self._side if name in columns and not isinstance(columns[name], pa.ListArray))
        return Shared(len(first), at, riding, shown, {name: columns[name].take(pa.array(first)) for name in single})

    def groups(
        self, shared: Shared | None, steps: int, empty: Callable[[tuple[int, ...], torch.dtype], torch.Tensor]
    ) -> list[Groups]:
        """Those of each batch; its padding rows are one.

        Args:
            shared: None where there are no rows.
            empty: makes a tensor without values.
        """
        rows = steps * self._rows
        begins = np.zeros(rows, bool)
        begins[:: self._rows] = True
        if shared is not None:
            begins[shared.at] = True
            begins[shared.rows : shared.rows + 1] = True
        group_SB = empty((steps, self._rows), torch.int64)
        np.cumsum(begins.reshape(steps, self._rows), axis=1, out=group_SB.numpy())
        group_SB -= 1
        firsts = empty((int(begins.sum()),), torch.int64)
        firsts.numpy()[:] = np.flatnonzero(begins) % self._rows
        shown = empty((steps, len(self._newest), self._rows), torch.int64)
        seen = np.zeros((steps, len(self._newest)), np.int64)
        for place, (name, newest) in enumerate(self._newest.items()):
            of_rows = np.zeros(rows, np.int64)
            if shared is not None:
                of_rows[: shared.rows] = shared.shown[name]
            shown.numpy()[:, place] = of_rows.reshape(steps, self._rows)
            seen[:, place] = np.minimum(of_rows, newest).reshape(steps, self._rows).sum(axis=1)
        of_steps = zip(
            group_SB.unbind(),
            firsts.split(begins.reshape(steps, self._rows).sum(axis=1).tolist()),
            shown.unbind(),
            map(tuple, seen.tolist()),
            strict=True,
        )
        names = self._riders, tuple(self._newest), tuple(self._newest.values())
        return [Groups(group_B, first_G, *names, shown_SB, seen) for group_B, first_G, shown_SB, seen in of_steps]
