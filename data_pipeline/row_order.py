"""The order of an epoch's rows: row groups, shuffled or as in the shards, and dealt in stripes of batches to lanes.

The row groups one after the other are the *line*. Without lanes the stream is the line itself, so that n ranks, each
with its slice of every batch, all decode every row group. L lanes cut a window of the line into L equal parts, and each
batch of the window holds the next stripe of each lane, lane by lane. A rank's slice of a batch is then stripes of its
own lanes, whose row groups no other rank decodes:

    line, cut in 2 lanes:  a b c d e f | g h i j k l        batches of 4:  a b g h,  c d i j,  e f k l

A row's place depends on the rows, G, L, seed and epoch, and not on the ranks. L and G need not divide each other, and
ranks need not divide L: a stripe is wide by one row more or less, and some row groups are decoded by two ranks.

A window of shuffled row groups is the whole epoch, so that row groups of any sizes fill lanes of any length. In the
order of the shards it is `_WINDOW` row groups a lane: there lanes keep the order from window to window, but not within
one. The rows that fill no whole batch end the stream as they end the line.

To open a file takes as long as to decode a row group, or several. Without lanes all row groups are shuffled, and where
there are many files, each row group is of another. With lanes the files are shuffled, and the row groups of a few files
at a time, so that one rank opens a file, and once; the lanes together are in `_FILES` files, or in one each.
"""

from dataclasses import dataclass
from typing import Literal

import numpy as np

from rankmixer_dist.config.data import MOST_LANES

_WINDOW = 4
"""Row groups that a lane has in a window. A lane that begins within a row group decodes one more."""

_FILES = 64
"""Files that rows are mixed from at any time, where lanes are fewer; files of several lanes are more."""
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
    stripes: np.ndarray
    window: int

    @classmethod
    def of(
        cls,
        rows: np.ndarray,
        files: np.ndarray,
        *,
        shuffle: Literal["chunks", "none"],
        seed: int,
        epoch: int,
        batch_size: int,
        lanes: int,
    ) -> "RowOrder":
        """The order of row groups that have so many `rows` and lie in such `files`, int64 [row groups], by time."""
        chunks = np.arange(len(rows))
        whole = int(rows.sum()) // batch_size
        lanes = min(lanes, batch_size)
        if shuffle == "chunks":
            random = np.random.Generator(np.random.Philox(np.random.SeedSequence([seed, epoch])))
            chunks = random.permutation(chunks)
            if lanes > 1:
                together = random.permutation(files.max(initial=-1) + 1)[files[chunks]] // -(-_FILES // lanes)
                chunks = chunks[np.argsort(together, kind="stable")]
            window = whole
        else:
            window = _WINDOW * -(-int(rows.max(initial=1)) * lanes // batch_size)
        return cls(
            chunks=chunks,
            starts=np.concatenate([[0], np.cumsum(rows[chunks])]),
            batch_size=batch_size,
            stripes=np.arange(lanes + 1) * batch_size // lanes,
            window=max(window, 1),
        )

    def pieces(self, starts: np.ndarray, stops: np.ndarray) -> list[Piece]:
        """What makes up rows [start, stop) of the stream, one slice after the other; neighbours are one piece.

        Args:
            starts, stops: int64 [slices]; a slice lies in one batch, and one that ends before it starts is empty.
        """
        held = starts < stops  # the tail does not reach all ranks
        first, end = self._on_the_line(starts[held], stops[held])
        if not len(first):
            return []
        new = np.concatenate([[True], first[1:] != end[:-1]])
        first, end = first[new], end[np.concatenate([new[1:], [True]])]
        place = np.searchsorted(self.starts, first, side="right") - 1
        of, nth = _counted(np.searchsorted(self.starts, end) - place)
        place = place[of] + nth
        begins = np.maximum(first[of], self.starts[place])
        rows = np.minimum(end[of], self.starts[place + 1]) - begins
        pieces = self.chunks[place], begins - self.starts[place], rows
        return [*zip(*(column.tolist() for column in pieces), strict=True)]

    def _on_the_line(self, starts: np.ndarray, stops: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Where the rows of the line begin and end that make up slices of the stream, one slice after the other."""
        if len(self.stripes) == 2:
            return starts, stops
        whole = self.starts[-1] // self.batch_size
        batch, column = np.divmod(starts, self.batch_size)
        in_tail = batch >= whole
        lane = np.searchsorted(self.stripes, column, side="right") - 1
        lanes = np.searchsorted(self.stripes, column + stops - starts) - lane
        of, nth = _counted(np.where(in_tail, 1, lanes))
        lane = lane[of] + nth
        left, right = self.stripes[lane], self.stripes[lane + 1]
        opens = (batch - batch % self.window)[of]
        batches = np.minimum(self.window, whole - opens)
        begins = np.maximum(column[of], left)
        rows = np.minimum((column + stops - starts)[of], right) - begins
        first = opens * self.batch_size + batches * left + (batch[of] - opens) * (right - left) + begins - left
        in_tail = in_tail[of]
        return np.where(in_tail, starts[of], first), np.where(in_tail, stops[of], first + rows)


def _counted(many: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """[2, 3] -> [0, 0, 1, 1, 1] and [0, 1, 0, 1, 2]."""
    of = np.repeat(np.arange(len(many)), many)
    return of, np.arange(len(of)) - (np.cumsum(many) - many)[of]


def files_at_once(*, lanes: int, ranks: int) -> int:
    """Files that a rank keeps open: those that its lanes are in. Without lanes every rank reads every row group."""
    return _FILES if lanes == 1 else -(-lanes * -(-_FILES // lanes) // ranks) + 1


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
