"""What the rows of a range of keys count, in bounded memory; counts of ranges add up to those of all rows."""

import math
import tempfile
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from functools import reduce
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from rankmixer_dist.evaluation.runs import KEYS, KeyRange, SortedRuns, write_run
from rankmixer_dist.evaluation.sorting import Group, Room, groups, keyed_by_score
from rankmixer_dist.metrics.auc_counts import AUCCounts
from rankmixer_dist.metrics.exact_sum import ExactSums
from rankmixer_dist.metrics.keys import user_ids_of
from rankmixer_dist.metrics.pr_auc import (
    NOBODY,
    ClassTotals,
    precision_terms,
    precision_terms_of_ties,
    weighted_precision_terms,
)
from rankmixer_dist.metrics.row_state import WEIGHTS
from rankmixer_dist.metrics.user_auc import exact_user_aucs
from rankmixer_dist.metrics.user_totals import UserAUCs, UserAUCTotals
from rankmixer_dist.metrics.weighted_counts import WeightedAUCCounts

Counts = AUCCounts | WeightedAUCCounts


def count_scores(rows: KeyRange, memory_rows: int, *, weighted: bool) -> dict[Group, Counts]:
    """Counts of a range of runs by score, of all rows and of each slice."""
    if rows.rows <= memory_rows:
        return {group: _counts(own, weighted=weighted) for group, own in groups(rows.arrays())}
    # Only rows of one score are that many.
    found = {group for columns in rows.chunks(memory_rows) for group, _ in groups(columns)}
    return {group: _counts_of_ties(_chunks_of(rows, group, memory_rows), weighted=weighted) for group in found}


def _counts(columns: Mapping[str, NDArray], *, weighted: bool) -> Counts:
    if weighted:
        return WeightedAUCCounts.of_rows(columns[KEYS], columns["labels"], _weights(columns))
    return AUCCounts.of_rows(columns[KEYS], columns["labels"])


def _counts_of_ties(chunks: Iterable[Mapping[str, NDArray]], *, weighted: bool) -> Counts:
    if weighted:
        return WeightedAUCCounts.of_ties((columns["labels"], _weights(columns)) for columns in chunks)
    positives = negatives = 0
    for columns in chunks:
        labels = columns["labels"]
        positives += int(labels.sum())
        negatives += int((~labels).sum())
    return AUCCounts.of_ties(positives, negatives)


def _chunks_of(rows: KeyRange, group: Group, memory_rows: int) -> Iterator[Mapping[str, NDArray]]:
    for columns in rows.chunks(memory_rows):
        yield from (own for found, own in groups(columns) if found == group)


def _weights(columns: Mapping[str, NDArray]) -> NDArray[np.float64]:
    return columns[WEIGHTS] if WEIGHTS in columns else np.ones(len(columns["labels"]))


def counts_together(ranges: Iterable[Counts]) -> Counts:
    """Counts of all rows from those of ranges of ascending scores, which are all of one of the two kinds."""
    ordered: list[Any] = list(ranges)
    return reduce(lambda lower, higher: lower.followed_by(higher), ordered) if ordered else AUCCounts.of_ties(0, 0)


@dataclass(frozen=True)
class Standing:
    """Where a range of scores stands among all: the classes of its rows, of those with higher scores, and of all."""

    here: ClassTotals
    above: ClassTotals
    whole: ClassTotals


def standings(ranges: list[dict[Group, Counts]]) -> list[dict[Group, Standing]]:
    """Of each range of ascending scores, given its counts."""
    whole: dict[Group, ClassTotals] = defaultdict(lambda: NOBODY)
    for counted in ranges:
        for group, counts in counted.items():
            whole[group] = whole[group].plus(counts.class_totals)
    above: dict[Group, ClassTotals] = defaultdict(lambda: NOBODY)
    found = []
    for counted in reversed(ranges):
        here = {group: counts.class_totals for group, counts in counted.items()}
        found.append({group: Standing(own, above[group], whole[group]) for group, own in here.items()})
        for group, own in here.items():
            above[group] = above[group].plus(own)
    return found[::-1]


def sum_precision(
    rows: KeyRange, standing: Mapping[Group, Standing], memory_rows: int, *, weighted: bool
) -> dict[Group, ExactSums]:
    """The sum of the terms of average precision of a range of runs by score; sums of ranges merge."""
    if rows.rows <= memory_rows:
        terms = {group: _terms(own, standing[group], weighted=weighted) for group, own in groups(rows.arrays())}
    else:  # rows of one score
        terms = {
            group: precision_terms_of_ties(own.here, own.above, own.whole, weighted=weighted)
            for group, own in standing.items()
        }
    sums = {group: ExactSums(1) for group in terms}
    for group, own in terms.items():
        sums[group].add(own, np.zeros(len(own), np.int64))
    return sums


def _terms(columns: Mapping[str, NDArray], standing: Standing, *, weighted: bool) -> NDArray[np.float64]:
    keys, labels = columns[KEYS], columns["labels"]
    if weighted:
        return weighted_precision_terms(keys, labels, _weights(columns), standing.above, standing.whole)
    return precision_terms(keys, labels, standing.above)


def average_precision_of(sums: ExactSums, whole: ClassTotals, *, weighted: bool) -> float:
    """Average precision, that of `average_precision` to the last bit, from the sum over all ranges."""
    if whole.positive == 0:
        return math.nan
    total = float(sums.rounded_sums()[0])
    return total if weighted else total / whole.positive


def total_users(rows: KeyRange, room: Room) -> dict[Group, UserAUCTotals]:
    """UAUC's sums over the users of a range of runs by user, of all rows and of each slice."""
    found: dict[Group, UserAUCTotals] = {}
    for group, users in _users(rows, room):
        found[group] = UserAUCTotals()
        found[group].update(users)
    return found


def _users(rows: KeyRange, room: Room) -> Iterator[tuple[Group, UserAUCs]]:
    if rows.rows <= room.memory_rows:
        for group, own in groups(rows.arrays()):
            yield group, exact_user_aucs(user_ids=user_ids_of(own.pop(KEYS)), **own)
        return
    # Only rows of one user are that many: the AUC inside them goes the way of all rows' AUC.
    weighted = WEIGHTS in rows.names
    with _folder_of_its_own(room) as folder:
        runs = []
        for columns in rows.chunks(room.memory_rows):
            user_id = user_ids_of(columns.pop(KEYS)[:1])
            runs.append(write_run(keyed_by_score(columns), folder))
        counted = [
            count_scores(own, room.memory_rows, weighted=weighted) for own in SortedRuns(runs).ranges(room.memory_rows)
        ]
    for group in dict.fromkeys(group for own in counted for group in own):
        yield group, _user_of(user_id, counts_together(own[group] for own in counted if group in own))


@contextmanager
def _folder_of_its_own(room: Room) -> Iterator[Path | None]:
    if room.folder is None:
        yield None
        return
    with tempfile.TemporaryDirectory(prefix="user-", dir=room.folder) as name:
        yield Path(name)


def _user_of(user_id: NDArray[np.int64], counts: Counts) -> UserAUCs:
    """The AUC of one user, nobody where the user has one class alone."""
    result = counts.result()
    rows = result.positives + result.negatives
    impressions = counts.weight if isinstance(counts, WeightedAUCCounts) else float(rows)
    scored = slice(0, 0 if math.isnan(result.auc) else 1)
    auc, weight, count = np.array([result.auc]), np.array([impressions]), np.array([rows])
    return UserAUCs(user_id[scored], auc[scored], weight[scored], count[scored])
