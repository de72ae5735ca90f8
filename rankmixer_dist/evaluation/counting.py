"""What the rows of a range of keys count, in bounded memory; counts of ranges add up to those of all rows."""

import math
import tempfile
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from functools import reduce
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from rankmixer_dist.errors import UserError
from rankmixer_dist.evaluation.runs import KEYS, KeyRange, SortedRuns, write_run
from rankmixer_dist.evaluation.sorting import Slice, SpillRoom, by_slice, keyed_by_score
from rankmixer_dist.metrics.auc_counts import AUCCounts
from rankmixer_dist.metrics.exact_sum import ExactSums
from rankmixer_dist.metrics.keys import user_ids_of
from rankmixer_dist.metrics.pr_auc import NOBODY, ClassTotals, precision_term_of_tie, precision_terms
from rankmixer_dist.metrics.row_state import WEIGHTS
from rankmixer_dist.metrics.user_auc import exact_user_aucs
from rankmixer_dist.metrics.user_totals import UserAUCs, UserAUCTotals
from rankmixer_dist.metrics.weights import MOST_UNITS, TOO_LARGE, UNITS_PER_ONE, weight_units


def count_scores(rows: KeyRange, memory_rows: int) -> dict[Slice, AUCCounts]:
    """Counts of a range of runs by score, of all rows and of each slice."""
    if rows.rows <= memory_rows:
        return {
            which: AUCCounts.of_rows(own[KEYS], own["labels"], _units(own)) for which, own in by_slice(rows.arrays())
        }
    # `bounds` leaves a range larger than that only where all its rows have one score.
    found: dict[Slice, AUCCounts] = defaultdict(AUCCounts)
    for columns in rows.chunks(memory_rows):
        for which, own in by_slice(columns):
            found[which] = found[which].plus(AUCCounts.of_one_score(own["labels"], _units(own)))
    return {which: counts.tied() for which, counts in found.items()}


def _units(columns: Mapping[str, NDArray]) -> NDArray[np.int64] | None:
    return weight_units(columns.get(WEIGHTS))


def counts_together(ranges: Iterable[AUCCounts]) -> AUCCounts:
    """Counts of all rows from those of ranges of ascending scores, all with weights or all without."""
    return reduce(AUCCounts.followed_by, ranges, AUCCounts())


@dataclass(frozen=True)
class ScoreStanding:
    """Where a range of scores stands: the classes of its rows, and of those with higher scores."""

    here: ClassTotals
    above: ClassTotals


def standings(ranges: list[dict[Slice, AUCCounts]]) -> list[dict[Slice, ScoreStanding]]:
    """Of each range of ascending scores, given its counts.

    Raises:
        UserError: weights whose sum is too large to be counted.
    """
    above: dict[Slice, ClassTotals] = defaultdict(lambda: NOBODY)
    found = []
    for counted in reversed(ranges):
        here = {which: counts.class_totals for which, counts in counted.items()}
        found.append({which: ScoreStanding(own, above[which]) for which, own in here.items()})
        for which, own in here.items():
            above[which] = above[which].plus(own)
    if any(total.positive + total.negative >= MOST_UNITS for total in above.values()):
        raise UserError(TOO_LARGE)
    return found[::-1]


def sum_precision(rows: KeyRange, standing: Mapping[Slice, ScoreStanding], memory_rows: int) -> dict[Slice, ExactSums]:
    """The sum of the terms of average precision of a range of runs by score; sums of ranges merge."""
    if rows.rows <= memory_rows:
        terms = {
            which: precision_terms(own[KEYS], own["labels"], standing[which].above, _units(own))
            for which, own in by_slice(rows.arrays())
        }
    else:  # rows of one score
        terms = {which: precision_term_of_tie(own.here, own.above) for which, own in standing.items()}
    sums = {which: ExactSums(1) for which in terms}
    for which, own in terms.items():
        sums[which].add(own, np.zeros(len(own), np.int64))
    return sums


def average_precision_of(sums: ExactSums, whole: ClassTotals) -> float:
    """Average precision, that of `average_precision` to the last bit, from the sum over all ranges."""
    return float(sums.rounded_sums()[0]) / whole.positive if whole.positive else math.nan


def total_users(rows: KeyRange, room: SpillRoom) -> dict[Slice, UserAUCTotals]:
    """UAUC's sums over the users of a range of runs by user, of all rows and of each slice."""
    found: dict[Slice, UserAUCTotals] = {}
    for which, users in _users(rows, room):
        found[which] = UserAUCTotals()
        found[which].update(users)
    return found


def _users(rows: KeyRange, room: SpillRoom) -> Iterator[tuple[Slice, UserAUCs]]:
    if rows.rows <= room.memory_rows:
        for which, own in by_slice(rows.arrays()):
            yield which, exact_user_aucs(user_ids=user_ids_of(own.pop(KEYS)), **own)
        return
    # Only rows of one user are that many: the AUC inside them goes the way of all rows' AUC.
    one = UNITS_PER_ONE if WEIGHTS in rows.names else 1
    with _folder_of_its_own(room) as folder:
        runs = []
        for columns in rows.chunks(room.memory_rows):
            user_id = user_ids_of(columns.pop(KEYS)[:1])
            runs.append(write_run(keyed_by_score(columns), folder))
        counted = [count_scores(own, room.memory_rows) for own in SortedRuns(runs).ranges(room.memory_rows)]
    for which in dict.fromkeys(which for own in counted for which in own):
        yield which, _user_of(user_id, counts_together(own[which] for own in counted if which in own), one)


@contextmanager
def _folder_of_its_own(room: SpillRoom) -> Iterator[Path | None]:
    if room.folder is None:
        yield None
        return
    with tempfile.TemporaryDirectory(prefix="user-", dir=room.folder) as name:
        yield Path(name)


def _user_of(user_id: NDArray[np.int64], counts: AUCCounts, one: int) -> UserAUCs:
    """The AUC of one user, nobody where the user has one class alone."""
    result = counts.result()
    rows = result.positives + result.negatives
    impressions = (counts.positive.weight + counts.negative.weight) / one
    scored = slice(0, 0 if math.isnan(result.auc) else 1)
    auc, weight, count = np.array([result.auc]), np.array([impressions]), np.array([rows])
    return UserAUCs(user_id[scored], auc[scored], weight[scored], count[scored])
