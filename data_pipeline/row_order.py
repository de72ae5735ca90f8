"""The order of an epoch's rows: row groups, shuffled or in the order of time, and dealt in stripes of batches to lanes.

The row groups one after the other are the *line*. Without lanes the stream is the line itself, so that n ranks, each
with its slice of every batch, all decode every row group. L lanes cut a window of the line into L equal parts, and each
batch of the window holds the next stripe of each lane, lane by lane. A rank's slice of a batch is then stripes of its
own lanes, whose row groups no other rank decodes:

    line, cut in 2 lanes:  a b c d e f | g h i j k l        batches of 4:  a b g h,  c d i j,  e f k l

A row's place depends on the rows, G, L, seed and epoch, and not on the ranks. L and G need not divide each other, and
ranks need not divide L: a stripe is wide by one row more or less, and some row groups are decoded by two ranks.

A window of shuffled row groups is the whole epoch, so that row groups of any sizes fill lanes of any length. In the
order of time it is `_WINDOW` row groups a lane: there the order is kept from window to window. The rows that fill no
whole batch end the stream as they end the line.
"""

from bisect import bisect_right
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Literal

import numpy as np

_WINDOW = 4
"""Row groups that a lane has in a window. A lane that begins within a row group decodes one more."""

MOST_LANES = 4096
"""One rank alone may have to keep so many row groups."""
_MANY = 4
"""Ranks that decode the same row group before somebody is told: from here on reading costs several times as much."""

Piece = tuple[int, int, int]
"""A row group, the first row of it, and how many."""


@dataclass(frozen=True)
class RowOrder:
    """The stream of an epoch.

    Args:
        chunks: row groups in the order of the line.
        starts: the row of the line at which each begins, and the end.
        batch_size: G.
        stripes: the column of a batch at which each lane's stripe begins, and G.
        window: whole batches that are dealt to the lanes at once.
    """

    chunks: np.ndarray
    starts: np.ndarray
    batch_size: int
    stripes: tuple[int, ...]
    window: int

    @classmethod
    def of(
        cls, rows: np.ndarray, *, shuffle: Literal["chunks", "none"], seed: int, epoch: int, batch_size: int, lanes: int
    ) -> "RowOrder":
        """The order of row groups that have so many `rows`, int64 [row groups], in the order of time."""
        chunks = np.arange(len(rows))
        whole = int(rows.sum()) // batch_size
        lanes = min(lanes, batch_size)
        if shuffle == "chunks":
            chunks = np.random.Generator(np.random.Philox(np.random.SeedSequence([seed, epoch]))).permutation(chunks)
            window = whole
        else:
            window = _WINDOW * -(-int(rows.max(initial=1)) * lanes // batch_size)
        return cls(
            chunks=chunks,
            starts=np.concatenate([[0], np.cumsum(rows[chunks])]),
            batch_size=batch_size,
            stripes=tuple(lane * batch_size // lanes for lane in range(lanes + 1)),
            window=max(window, 1),
        )

    def pieces(self, slices: Iterable[tuple[int, int]]) -> list[Piece]:
        """What makes up rows [start, stop) of the stream, one slice after the other; neighbours are one piece."""
        spans: list[tuple[int, int]] = []
        for start, stop in slices:
            if start >= stop:  # of a rank that the tail does not reach
                continue
            for first, end in self._on_the_line(start, stop):
                if spans and spans[-1][1] == first:
                    spans[-1] = spans[-1][0], end
                else:
                    spans.append((first, end))
        places = np.searchsorted(self.starts, [first for first, _ in spans], side="right") - 1
        return [piece for span, place in zip(spans, places.tolist(), strict=True) for piece in self._cut(*span, place)]

    def _on_the_line(self, start: int, stop: int) -> Iterator[tuple[int, int]]:
        """Rows [first, end) of the line that make up rows [start, stop) of the stream."""
        if len(self.stripes) == 2:
            yield start, stop
            return
        whole = int(self.starts[-1]) // self.batch_size
        while start < stop:
            batch, column = divmod(start, self.batch_size)
            if batch >= whole:
                yield start, stop
                return
            opens = batch - batch % self.window
            batches = min(self.window, whole - opens)
            lane = bisect_right(self.stripes, column) - 1
            left, right = self.stripes[lane], self.stripes[lane + 1]
            first = opens * self.batch_size + batches * left + (batch - opens) * (right - left) + column - left
            rows = min(right - column, stop - start)
            yield first, first + rows
            start += rows

    def _cut(self, start: int, stop: int, place: int) -> Iterator[Piece]:
        """Rows [start, stop) of the line, which begin in the row group at `place` of it, by row group."""
        while start < stop:
            first, end = int(self.starts[place]), int(self.starts[place + 1])
            rows = min(stop, end) - start
            if rows:
                yield int(self.chunks[place]), start - first, rows
            start += rows
            place += 1


def told_of_shared(*, batch_size: int, lanes: int, ranks: int, row_group_rows: int) -> str | None:
    """One line where many ranks decode the same row groups, and which key mends it; None where few do."""
    share = max(batch_size // ranks, 1)
    shared = min(ranks / lanes, row_group_rows / share)
    if shared < _MANY:
        return None
    return (
        f"each row group is decoded by about {shared:,.0f} of {ranks:,} ranks; in a run of another `name`, "
        f"loader.interleave={min(ranks, MOST_LANES)} lets each decode its own"
    )
