"""KuaiRand's sequences as rows of their own: each earlier watch with what of its outcome the lists tell.

The lists `watch_seq`, `long_watch_seq` and `like_seq` hold the same events in the same order, so a watch was long, or
liked, exactly when it can be matched in the other list. Of a video that a user watched more than once the lists do not
tell which watch it was; such an event gets no label. (On the users whose whole history is in the list, every long
watch and like finds its watch.) Finish, skip and click are not told at all.

An event knows its order but not its time: `time_ms` is the time of the user's last event less an hour for each event
after it, so that in order of time the users' events mingle. Its history is what the lists hold before it, so it is
shorter than that of a logged row.
"""

from pathlib import Path

import numpy as np
import pyarrow as pa

from data_pipeline.sources import FILE_INDEX_SHIFT, Unit
from rankmixer_dist.schema import ROW_ID, USER_ID

LISTS = {"watch": "watch_seq", "like": "like_seq", "long_watch": "long_watch_seq"}
"""Kind of event -> the column that lists a user's newest ones, oldest first."""

_OUTCOMES = {"is_like": "like", "long_view": "long_watch"}
_USERS_PER_UNIT = 4096
_HOUR_MS = 3_600_000


def past_units(path: Path, file_index: int, sequences: pa.Table) -> list[Unit]:
    """Units of some thousand users each; a row of the file is one entry of `watch_seq`."""
    offsets = sequences[LISTS["watch"]].combine_chunks().offsets.to_numpy()
    starts = range(0, sequences.num_rows, _USERS_PER_UNIT)
    ends = [int(offsets[min(start + _USERS_PER_UNIT, sequences.num_rows)]) for start in starts]
    firsts = [int(offsets[start]) for start in starts]
    return [
        Unit(path, file_index, group, first, end - first)
        for group, (first, end) in enumerate(zip(firsts, ends, strict=True))
    ]


def past_events(unit: Unit, sequences: pa.Table) -> pa.Table:
    """The events of a unit of `past_units`: ids, `time_ms`, the known labels, and what came before each event.

    Args:
        sequences: `user_id`, `last_time_ms`, `history_len` and the three lists of all users.
    """
    part = sequences.slice(unit.row_group * _USERS_PER_UNIT, _USERS_PER_UNIT)
    lists = {kind: part[column].combine_chunks() for kind, column in LISTS.items()}
    lengths = np.diff(lists["watch"].offsets.to_numpy())
    user = np.repeat(np.arange(len(lengths)), lengths)
    place = np.arange(len(user)) - np.repeat(np.cumsum(lengths) - lengths, lengths)
    later = lengths[user] - 1 - place
    videos = lists["watch"].flatten().to_numpy()
    told = _occurs_once(user, videos)
    last_time, history = (part[name].to_numpy() for name in ("last_time_ms", "history_len"))
    before = {"watch": place}
    columns = {
        ROW_ID: pa.array((unit.file_index << FILE_INDEX_SHIFT) + unit.first_row + np.arange(len(user))),
        USER_ID: pa.array(part[USER_ID].to_numpy()[user]),
        "video_id": pa.array(videos),
        "time_ms": pa.array(last_time[user] - later * _HOUR_MS),
        "history_len": pa.array(history[user] - 1 - later),
    }
    for label, kind in _OUTCOMES.items():
        happened, before[kind] = match_newest_first(lists["watch"], lists[kind])
        columns[label] = pa.array(happened.astype(np.int64), mask=~told)
    for kind, column in LISTS.items():
        columns[f"user_{kind}_count"] = pa.array(before[kind].astype(np.int32))
        columns[column] = _prefixes(lists[kind], user, before[kind])
    return pa.table(columns)


def match_newest_first(watched: pa.ListArray, chosen: pa.ListArray) -> tuple[np.ndarray, np.ndarray]:
    """Matches each user's chosen events with watches, from the newest back, each with the latest watch that fits.

    Returns:
        For every watch in flat order, whether a chosen event fell on it (bool [N]), and how many chosen events are
        certain to be earlier: those left when all watches from this one on have taken theirs (int [N]).
    """
    watched_UL, chosen_UM = _right_aligned(watched), _right_aligned(chosen)
    users = np.arange(len(watched_UL))
    happened_UL = np.zeros(watched_UL.shape, dtype=bool)
    left_UL = np.zeros(watched_UL.shape, dtype=np.int64)
    left = np.diff(chosen.offsets.to_numpy()).astype(np.int64)
    padding = chosen_UM.shape[1] - left
    for place in reversed(range(watched_UL.shape[1])):
        newest = chosen_UM[users, np.maximum(padding + left - 1, 0)] if chosen_UM.shape[1] else np.full(len(users), -1)
        hit = (left > 0) & (newest == watched_UL[:, place])
        happened_UL[:, place] = hit
        left = left - hit
        left_UL[:, place] = left
    lengths = np.diff(watched.offsets.to_numpy())
    real_UL = np.arange(watched_UL.shape[1]) >= watched_UL.shape[1] - lengths[:, None]
    return happened_UL[real_UL], left_UL[real_UL]


def _right_aligned(lists: pa.ListArray) -> np.ndarray:
    """[U, longest], each list at the right end, -1 before it."""
    lengths = np.diff(lists.offsets.to_numpy())
    width = int(lengths.max(initial=0))
    aligned = np.full((len(lengths), width), -1, dtype=np.int64)
    aligned[np.arange(width) >= width - lengths[:, None]] = lists.flatten().to_numpy()
    return aligned


def _occurs_once(user: np.ndarray, videos: np.ndarray) -> np.ndarray:
    """Which (user, video) pairs stand alone; bool [N]."""
    _, inverse, counts = np.unique(np.stack([user, videos]), axis=1, return_inverse=True, return_counts=True)
    return counts[inverse.ravel()] == 1


def _prefixes(lists: pa.ListArray, user: np.ndarray, counts: np.ndarray) -> pa.ListArray:
    """Row n: the first counts[n] entries of list user[n]."""
    offsets = lists.offsets.to_numpy()
    ends = np.cumsum(counts)
    places = np.arange(ends[-1] if len(ends) else 0) + np.repeat(offsets[user] - (ends - counts), counts)
    values = lists.values.to_numpy()[places]
    return pa.ListArray.from_arrays(pa.array(np.concatenate([[0], ends]).astype(np.int32)), pa.array(values))
