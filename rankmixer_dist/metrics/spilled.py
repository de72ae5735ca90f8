"""Exact AUC and UAUC of any number of rows in bounded memory: rows wait on disk, sorted in runs."""

import math
from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator, Mapping
from functools import reduce
from pathlib import Path
from typing import Any, ClassVar, Self

import numpy as np
from numpy.typing import ArrayLike, NDArray

from rankmixer_dist.metrics.auc_counts import AUCCounts
from rankmixer_dist.metrics.auc_result import AUCResult
from rankmixer_dist.metrics.exact_sum import ExactSums
from rankmixer_dist.metrics.keys import score_keys, user_ids_of, user_keys
from rankmixer_dist.metrics.pr_auc import (
    ClassTotals,
    precision_terms,
    precision_terms_of_ties,
    weighted_precision_terms,
)
from rankmixer_dist.metrics.row_state import Checks, RowBuffer
from rankmixer_dist.metrics.rows import check_labels, check_scores, check_user_ids
from rankmixer_dist.metrics.sorted_runs import KEYS, KeyRange, SortedRuns
from rankmixer_dist.metrics.user_auc import bootstrap_uauc, exact_user_aucs
from rankmixer_dist.metrics.user_resampling import BootstrapResult
from rankmixer_dist.metrics.user_totals import UserAUCResult, UserAUCs, UserAUCTotals
from rankmixer_dist.metrics.weighted_counts import WeightedAUCCounts

MEMORY_ROWS = 1 << 22


class SpilledState(ABC):
    """A metric over rows that are on disk, but for the last `memory_rows` at most.

    Args:
        folder: of a disk with room for the rows; what is written there goes when the state does.
        memory_rows: rows that are held in memory at a time, about 60 bytes each; updates should be smaller.
    """

    checks: ClassVar[Checks]

    def __init__(self, folder: Path, memory_rows: int = MEMORY_ROWS) -> None:
        self._folder = folder
        self._memory_rows = memory_rows
        self._recent = RowBuffer(self.checks)
        self._runs = SortedRuns(folder)

    def merge(self, other: Self) -> None:
        """Add the rows of another state to this one; of those on disk only the names."""
        self._runs.merge(other._runs)
        self._recent.merge(other._recent)
        self._spill_if_full()

    def save(self, path: Path) -> None:
        """Write the state to a new folder of .npy files, which is complete or absent.

        Raises:
            UserError: the folder is there already.
            OSError: it cannot be written.
        """
        self._spill()
        self._runs.save(path, type(self).__name__)

    @classmethod
    def load(cls, path: Path, folder: Path, memory_rows: int = MEMORY_ROWS) -> Self:
        """The state that was saved to `path`, which has to stay there; new rows go to `folder`.

        Raises:
            UserError: no such folder, one of another kind of state, or one that lacks rows.
        """
        state = cls(folder, memory_rows)
        state._runs = SortedRuns.load(path, cls.__name__, folder)
        return state

    def _add(self, columns: dict[str, ArrayLike], weights: ArrayLike | None = None) -> None:
        self._recent.append(columns, weights)
        self._spill_if_full()

    def _spill_if_full(self) -> None:
        if self._recent.rows >= self._memory_rows:
            self._spill()

    def _spill(self) -> None:
        self._runs.append(self._keyed(self._recent.arrays()))
        self._recent.clear()

    @abstractmethod
    def _keyed(self, columns: dict[str, NDArray]) -> dict[str, NDArray]:
        """The columns of a run, from checked ones; each kind of state has its own."""


class SpilledAUC(SpilledState):
    """Mergeable exact AUC in bounded memory; `AUC` to the last bit, its variance included, for every split of the rows.

    9 bytes a row on disk, 8 more with weights. Rows are counted in ranges of scores that fit memory, and the counts of
    ranges add up (`AUCCounts`): all of it is exact until the last division.
    """

    checks = {"scores": check_scores, "labels": check_labels}

    def update(self, scores: ArrayLike, labels: ArrayLike, weights: ArrayLike | None = None) -> None:
        """Add rows: scores [rows] float32 or float64, labels [rows] of 0 and 1, weights [rows], 1 each if left out.

        Raises:
            ValueError: scores that are NaN or infinite, labels other than 0 and 1, weights that are NaN, negative or
                above 2**40, lengths that differ.
            UserError: the folder cannot be written or is full.
        """
        self._add({"scores": scores, "labels": labels}, weights)

    def compute(self) -> AUCResult:
        """AUC, DeLong interval and class counts over all rows so far."""
        return self.counts().result()

    def counts(self) -> AUCCounts | WeightedAUCCounts:
        """What `compute` is made of."""
        self._spill()
        weighted = "weights" in self._runs.names
        ranges = self._runs.ranges(self._memory_rows)
        return counts_together(count_range(rows, self._memory_rows, weighted=weighted) for rows in ranges)

    def _keyed(self, columns: dict[str, NDArray]) -> dict[str, NDArray]:
        return keyed_by_score(columns)


class SpilledUserAUC(SpilledState):
    """Mergeable exact UAUC in bounded memory; `UserAUC` to the last bit, for every split of the rows.

    13 bytes a row on disk with float32 scores, 8 more with weights. Users are partitioned by a hash, so finely that
    each part fits memory and is computed alone. A single user with more rows than that goes through a `SpilledAUC`.
    """

    checks = {"scores": check_scores, "labels": check_labels, "user_ids": check_user_ids}

    def update(
        self, scores: ArrayLike, labels: ArrayLike, user_ids: ArrayLike, weights: ArrayLike | None = None
    ) -> None:
        """Add rows: scores [rows] float32 or float64, labels [rows] of 0 and 1, user_ids [rows] integers, and
        weights [rows], 1 each if left out.

        Raises:
            ValueError: scores that are NaN or infinite, labels other than 0 and 1, ids that are no int64, weights
                that are NaN, negative or above 2**40, lengths that differ.
            UserError: the folder cannot be written or is full.
        """
        self._add({"scores": scores, "labels": labels, "user_ids": user_ids}, weights)

    def compute(self) -> UserAUCResult:
        """UAUC, weighted and not, over all rows so far."""
        totals = UserAUCTotals()
        for users in self.users():
            totals.update(users)
        return totals.compute()

    def bootstrap(self, replicates: int = 1000, seed: int = 0) -> BootstrapResult:
        """Standard error and interval of `uauc`, by drawing users (`UserBootstrap`)."""
        return bootstrap_uauc(self.users(), replicates, seed)

    def users(self) -> Iterator[UserAUCs]:
        """The AUC of each user with both classes, part by part."""
        self._spill()
        for rows in self._runs.ranges(self._memory_rows):
            yield users_of_range(rows, self._memory_rows, self._folder)

    def _keyed(self, columns: dict[str, NDArray]) -> dict[str, NDArray]:
        return keyed_by_user(columns)


def keyed_by_score(columns: Mapping[str, NDArray]) -> dict[str, NDArray]:
    """The columns of a run for AUC, from checked columns [rows]: keys in the order of the scores, labels, weights."""
    others = {name: columns[name] for name in ("labels", "weights") if name in columns}
    return {KEYS: score_keys(columns["scores"].astype(np.float64)), **others}


def keyed_by_user(columns: Mapping[str, NDArray]) -> dict[str, NDArray]:
    """The columns of a run for UAUC, from checked columns [rows]: keys of the users, and all others as they are."""
    others = {name: column for name, column in columns.items() if name != "user_ids"}
    return {KEYS: user_keys(columns["user_ids"]), **others}


def count_range(rows: KeyRange, memory_rows: int, *, weighted: bool) -> AUCCounts | WeightedAUCCounts:
    """Counts of a range of runs `keyed_by_score`, in the memory of `memory_rows`."""
    if rows.rows <= memory_rows:
        columns = rows.arrays()
        if weighted:
            weights = columns.get("weights", np.ones(rows.rows))
            return WeightedAUCCounts.of_rows(columns[KEYS], columns["labels"], weights)
        return AUCCounts.of_rows(columns[KEYS], columns["labels"])
    # Only rows of one score are that many.
    chunks = rows.chunks(memory_rows)
    if weighted:
        return WeightedAUCCounts.of_ties(
            (columns["labels"], columns.get("weights", np.ones(len(columns["labels"])))) for columns in chunks
        )
    positives = sum(int(columns["labels"].sum()) for columns in chunks)
    return AUCCounts.of_ties(positives, rows.rows - positives)


def counts_together(ranges: Iterable[Any]) -> AUCCounts | WeightedAUCCounts:
    """Counts of all rows from those of ranges of ascending scores, which are all of one of the two kinds."""
    ordered = list(ranges)
    return reduce(lambda lower, higher: lower.followed_by(higher), ordered) if ordered else AUCCounts.of_ties(0, 0)


def precision_of_range(
    rows: KeyRange, here: ClassTotals, above: ClassTotals, whole: ClassTotals, memory_rows: int, *, weighted: bool
) -> ExactSums:
    """The sum of the terms of average precision of a range of runs `keyed_by_score`; sums of ranges merge.

    Args:
        here, above, whole: of the range's rows, of those with higher scores and of all.
    """
    if rows.rows > memory_rows:
        # Only rows of one score are that many.
        terms = precision_terms_of_ties(here, above, whole, weighted=weighted)
    else:
        columns = rows.arrays()
        keys, labels = columns[KEYS], columns["labels"]
        if weighted:
            weights = columns.get("weights", np.ones(rows.rows))
            terms = weighted_precision_terms(keys, labels, weights, above, whole)
        else:
            terms = precision_terms(keys, labels, above)
    sums = ExactSums(1)
    sums.add(terms, np.zeros(len(terms), np.int64))
    return sums


def average_precision_of(sums: ExactSums, whole: ClassTotals, *, weighted: bool) -> float:
    """Average precision, that of `average_precision` to the last bit, from the sum over all ranges."""
    if whole.positive == 0:
        return math.nan
    total = float(sums.rounded_sums()[0])
    return total if weighted else total / whole.positive


def users_of_range(rows: KeyRange, memory_rows: int, folder: Path) -> UserAUCs:
    """The AUC of each user of a range of runs `keyed_by_user`, in the memory of `memory_rows`.

    Args:
        folder: for the rows of a single user that are more than that.
    """
    if rows.rows <= memory_rows:
        columns = rows.arrays()
        return exact_user_aucs(user_ids=user_ids_of(columns.pop(KEYS)), **columns)
    auc = SpilledAUC(folder, memory_rows)
    for columns in rows.chunks(memory_rows):
        user_id = user_ids_of(columns.pop(KEYS)[:1])
        auc.update(**columns)
    counts = auc.counts()
    result = counts.result()
    impressions = counts.weight if isinstance(counts, WeightedAUCCounts) else float(rows.rows)
    scored = slice(0, 0) if np.isnan(result.auc) else slice(0, 1)
    aucs, sums = np.array([result.auc]), np.array([impressions])
    return UserAUCs(user_id[scored], aucs[scored], sums[scored], np.array([rows.rows])[scored])
