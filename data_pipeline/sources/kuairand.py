"""KuaiRand-Pure: exposures of the Kuaishou app, joined with the user's earlier sequence and the two side files.

What is done about the traps of these files:

- Time is `time_ms` alone. `date` and `hourmin` run up to an hour ahead of it, so `hour` is computed from it (UTC+8).
- Exact duplicates of a row are dropped: `row_hash` covers every log column, used or not, by the value and not by the
  type that a file holds it in; a column that a file lacks is null there.
- The sequences reach up to one moment per user, `last_time_ms`. A row at or before it would see its own future, so it
  gets no history.
- Past statistics come from the sequences alone: how often each video was watched, watched long and liked in them, and
  the lengths of a user's own lists. A row that is not later than the last event of all sequences gets none.
- `item_features.parquet` is never opened: its 50 statistic columns and `counts` are means over the following month.
- With `past_events`, each watch in the sequences is a row of its own (`kuairand_past`), without past statistics, which
  count its own outcome, and without what only the log tells (`tab`, `hour`).
- `unknown` tags and `UNKNOWN` user and video values are missing values.
"""

from collections.abc import Iterable, Mapping
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.csv
import pyarrow.parquet as pq

from data_pipeline import kinds
from data_pipeline.hashing import hash_rows, hash_values, read_ids
from data_pipeline.raw_values import floats, milliseconds
from data_pipeline.sources import ROW_HASH, RawTypes, Unit
from data_pipeline.sources.kuairand_past import LISTS, past_events, past_units
from data_pipeline.sources.parquet_log import ParquetLog, fingerprint, list_files, require_columns, require_types
from rankmixer_dist.config import KuaiRandSource
from rankmixer_dist.errors import UserError
from rankmixer_dist.schema import ROW_ID, TIMESTAMP, USER_ID

USERS, VIDEOS = "user_features_pure.csv.gz", "video_features_basic_pure.csv.gz"

STATISTIC_COLUMNS = (
    "counts show_cnt show_user_num play_cnt play_user_num play_duration complete_play_cnt complete_play_user_num "
    "valid_play_cnt valid_play_user_num long_time_play_cnt long_time_play_user_num short_time_play_cnt "
    "short_time_play_user_num play_progress comment_stay_duration like_cnt like_user_num click_like_cnt "
    "double_click_cnt cancel_like_cnt cancel_like_user_num comment_cnt comment_user_num direct_comment_cnt "
    "reply_comment_cnt delete_comment_cnt delete_comment_user_num comment_like_cnt comment_like_user_num follow_cnt "
    "follow_user_num cancel_follow_cnt cancel_follow_user_num share_cnt share_user_num download_cnt "
    "download_user_num report_cnt report_user_num reduce_similar_cnt reduce_similar_user_num collect_cnt "
    "collect_user_num cancel_collect_cnt cancel_collect_user_num direct_comment_user_num reply_comment_user_num "
    "share_all_cnt share_all_user_num outsite_share_all_cnt"
).split()
"""Columns of item_features.parquet that neither the basic video file nor its `upload_dt` gives."""

_UNTIL = b"until_ms"
_SKIP_MS, _CHINA_MS, _HOUR_MS = 3000, 8 * 3_600_000, 3_600_000
_HISTORY = ("history_len", "last_time_ms", "watch_seq", "like_seq", "long_watch_seq")
_NEEDED = {
    USER_ID: (kinds.is_id, "integers or strings"),
    "video_id": (kinds.is_id, "integers or strings"),
    "time_ms": (kinds.is_moment, "Unix milliseconds or timestamps"),
    "play_time_ms": (kinds.is_number, "numbers"),
}
_PRIOR_WATCHES = 20
"""Watches at the average rate that each video's rates are smoothed with."""


class KuaiRandLog:
    """Every `log_*.parquet` of a KuaiRand-Pure folder.

    Raises:
        UserError: the folder or a file is missing, or a file lacks a column.
    """

    name = "kuairand"
    outcome_columns = frozenset(
        "is_click is_like is_follow is_comment is_forward is_hate long_view is_profile_enter play_time_ms watch_ratio "
        "profile_stay_time comment_stay_time finish like long_watch is_positive skip".split()
    )
    leaking_columns = frozenset(STATISTIC_COLUMNS)
    time_column = "time_ms"
    truth_columns: Mapping[str, str] = {}
    drops_duplicates = True
    flags: Mapping[str, str] = {"history_cut": "rows not later than their user's sequence: their history is left out"}

    def __init__(self, config: KuaiRandSource, columns: Iterable[str]) -> None:
        self._log = ParquetLog(config.path, [*_NEEDED, *columns], others=True)
        self._past_events = config.past_events
        require_columns(self._log.paths[0], self._log.names, _NEEDED)
        for name, types in self._log.types.items():
            fits, wanted = _NEEDED.get(name, (_comparable, "numbers, strings or moments, to find duplicates by"))
            require_types(name, types, fits, wanted)
        self._sequences = list_files(config.path, "user_sequences*.parquet")
        if len(self._sequences) > 1:
            raise UserError(f"source.path {config.path}: holds more than one user_sequences*.parquet")
        self._users, self._videos = (list_files(config.path, name)[0] for name in (USERS, VIDEOS))
        self._schema: pa.Schema | None = None

    def schema(self) -> pa.Schema:
        """Raw joined columns."""
        if self._schema is None:
            side_tables = self.side_tables()
            self._schema = self._join(_no_rows(self._log.schema), side_tables).schema
            if self._past_events:
                past = self._past(
                    past_events(
                        Unit(self._sequences[0], 0, row_group=0, first_row=0, rows=0),
                        side_tables["sequences"].slice(0, 0),
                    ),
                    side_tables,
                )
                kinds_of = ((field.name, [field.type, past.schema.field(field.name).type]) for field in self._schema)
                self._schema = pa.schema([(name, kinds.common(both)) for name, both in kinds_of])
        return self._schema

    def names(self) -> list[str]:
        """Raw joined columns."""
        return self.schema().names

    def types(self) -> RawTypes:
        """The types of the log's files."""
        return self._log.types

    def units(self) -> list[Unit]:
        """One unit a row group of the logs, then the events of the sequences where the config asks for them."""
        if not self._past_events:
            return self._log.units()
        path = self._sequences[0]
        return self._log.units() + past_units(path, len(self._log.paths), _read_side(path))

    def fingerprint(self) -> str:
        """Over the logs and the three side files."""
        return fingerprint(self._log.paths, [*self._sequences, self._users, self._videos])

    def side_tables(self) -> dict[str, pa.Table]:
        """`sequences` and `users` by user_id; `past`, `videos` and `catalogue` by video_id.

        `users` and `videos` leave out what the log has itself; `catalogue` is what it has of a video.
        """
        sequences = _read_side(self._sequences[0])
        require_columns(self._sequences[0], sequences.column_names, (USER_ID, *_HISTORY))
        for name in LISTS.values():
            found = {sequences.schema.field(name).type: self._sequences[0]}
            require_types(name, found, _is_list_of_integers, "plain lists of integers")
        users, videos = _read_side(self._users), _read_side(self._videos)
        require_columns(self._users, users.column_names, [USER_ID])
        require_columns(self._videos, videos.column_names, ["video_id"])
        # A user's own number of followees bears the name of a leaking video statistic.
        users = users.rename_columns([f"user_{n}" if n in self.leaking_columns else n for n in users.column_names])
        known = set(self._log.schema.names)
        return {
            "sequences": _with_list_lengths(sequences.select([USER_ID, *_HISTORY])),
            "past": _past_statistics(sequences),
            "users": users.select([n for n in users.column_names if n == USER_ID or n not in known]),
            "videos": videos.select([n for n in videos.column_names if n == "video_id" or n not in known]),
            "catalogue": videos.select([n for n in videos.column_names if n in known]),
        }

    def read(self, unit: Unit, side_tables: Mapping[str, pa.Table]) -> pa.Table:
        """Raw joined columns of a unit in the types of its file."""
        if unit.path == self._sequences[0]:
            return self._past(past_events(unit, side_tables["sequences"]), side_tables)
        return self._join(self._log.read(unit), side_tables)

    def _join(self, log: pa.Table, side_tables: Mapping[str, pa.Table]) -> pa.Table:
        raw = self._describe(log, side_tables)
        return _add_past(_add_history(raw, side_tables["sequences"]), side_tables["past"])

    def _past(self, events: pa.Table, side_tables: Mapping[str, pa.Table]) -> pa.Table:
        """Past events as rows of the log: what is not known of them is null."""
        rows = events.num_rows
        known = _lookup(events, side_tables["catalogue"], "video_id")
        names = [*self._log.columns, ROW_ID]
        log = {name: known[name] if name in known.column_names else pa.nulls(rows) for name in names}
        raw = self._describe(pa.table(log), side_tables)
        raw = raw.set_column(raw.schema.get_field_index("hour"), "hour", pa.nulls(rows, raw["hour"].type))
        raw = raw.append_column("history_cut", pa.repeat(False, rows))
        for name in ("history_len", *(f"user_{kind}_count" for kind in LISTS)):
            raw = raw.append_column(name, events[name])
        for name in _HISTORY[1:]:
            raw = raw.append_column(name, events[name] if name in events.column_names else pa.nulls(rows, pa.int64()))
        return _add_past(raw, side_tables["past"])

    def _describe(self, log: pa.Table, side_tables: Mapping[str, pa.Table]) -> pa.Table:
        """The log's columns with what follows from them, the user's and the video's."""
        time, timed, faulty = milliseconds(log["time_ms"].combine_chunks())
        time_ms = pa.array(time, mask=~timed | faulty)
        compared = log.drop_columns([ROW_ID, "time_ms"]).append_column("time_ms", time_ms)
        raw = log.append_column(ROW_HASH, hash_rows(compared)).append_column(TIMESTAMP, time_ms)
        china_hour = pc.divide(pc.add(time_ms, _CHINA_MS), _HOUR_MS)
        raw = raw.append_column("hour", pc.subtract(china_hour, pc.multiply(pc.divide(china_hour, 24), 24)))
        played = floats(log["play_time_ms"].combine_chunks())
        raw = raw.append_column("skip", pa.array((played < _SKIP_MS).astype(np.int8), mask=np.isnan(played)))
        raw = _unknown_to_null(_lookup(raw, side_tables["users"], USER_ID))
        return _unknown_to_null(_lookup(raw, side_tables["videos"], "video_id"))


def _add_history(raw: pa.Table, sequences: pa.Table) -> pa.Table:
    """Joins the sequences; a user without one has watched nothing, a row inside one must not see it."""
    joined = _lookup(raw.select([USER_ID, TIMESTAMP]), sequences, USER_ID)
    cut = pc.fill_null(pc.less_equal(joined[TIMESTAMP], joined["last_time_ms"]), False)
    raw = raw.append_column("history_cut", cut)
    for name in ("history_len", *(f"user_{name}_count" for name in LISTS)):
        known = pc.fill_null(joined[name], 0)
        raw = raw.append_column(name, pc.if_else(cut, pa.scalar(None, known.type), known))
    for name in _HISTORY[1:]:
        column = joined[name].combine_chunks()
        raw = raw.append_column(name, pc.if_else(cut.combine_chunks(), pa.scalar(None, column.type), column))
    return raw


def _add_past(raw: pa.Table, past: pa.Table) -> pa.Table:
    """Joins the past statistics of the row's video; a row inside the span that they count must not see them."""
    joined = _lookup(raw.select(["video_id", TIMESTAMP]), past, "video_id")
    later = pc.greater(joined[TIMESTAMP], pa.scalar(int(past.schema.metadata[_UNTIL])))
    for name in past.column_names[1:]:
        raw = raw.append_column(name, pc.if_else(later, joined[name], pa.scalar(None, joined[name].type)))
    return raw


def _with_list_lengths(sequences: pa.Table) -> pa.Table:
    for name, column in LISTS.items():
        sequences = sequences.append_column(f"user_{name}_count", pc.list_value_length(sequences[column]))
    return sequences


def _past_statistics(sequences: pa.Table) -> pa.Table:
    """Per video: `past_watches`, and the smoothed shares of them that were `past_long_rate` and `past_like_rate`.

    A list holds a user's newest events of its kind only, so long watches and likes of a user with many events reach
    further back than the watches do; the rates are relative popularities, not probabilities.
    """
    counts = {}
    for name, column in LISTS.items():
        ids, times = np.unique(sequences[column].combine_chunks().flatten().to_numpy(), return_counts=True)
        counts[name] = dict(zip(ids.tolist(), times.tolist(), strict=True))
    videos = sorted(set().union(*counts.values()))
    watch, like, long_watch = (np.array([counts[name].get(video, 0) for video in videos]) for name in LISTS)
    past = {"video_id": videos, "past_watches": watch.astype(float)}
    for name, times in (("past_long_rate", long_watch), ("past_like_rate", like)):
        average = times.sum() / max(1, watch.sum())
        past[name] = (times + _PRIOR_WATCHES * average) / (watch + _PRIOR_WATCHES)
    until = pc.max(sequences["last_time_ms"]).as_py()
    return pa.table(past).replace_schema_metadata({_UNTIL: str(until)})


def _lookup(rows: pa.Table, side: pa.Table, key: str) -> pa.Table:
    """`rows` with the columns of the side row that has the same id in `key`, null where there is none."""
    found = side.take(pc.index_in(_join_key(rows[key]), value_set=_join_key(side[key]), skip_nulls=True))
    for name in side.column_names:
        if name != key:
            rows = rows.append_column(name, found[name])
    return rows


def _join_key(ids: pa.ChunkedArray) -> pa.Array:
    """Equal for the same id, whatever type holds it; null for a missing one."""
    column = ids.combine_chunks()
    return pa.array(hash_values(column), mask=~read_ids(column).present)


def _comparable(kind: pa.DataType) -> bool:
    return kinds.is_number(kind) or kinds.is_text(kind) or kinds.is_time(kind)


def _is_list_of_integers(kind: pa.DataType) -> bool:
    # Views and lists of a fixed size have no offsets that say where each list ends.
    return (pa.types.is_list(kind) or pa.types.is_large_list(kind)) and kinds.is_integer(kind.value_type)


def _unknown_to_null(rows: pa.Table) -> pa.Table:
    for index, field in enumerate(rows.schema):
        if kinds.is_string(field.type):
            column = kinds.decoded(rows.column(index).combine_chunks())
            unknown = pc.equal(pc.ascii_lower(column), "unknown")
            rows = rows.set_column(index, field.name, pc.if_else(unknown, pa.scalar(None, column.type), column))
    return rows


def _read_side(path: Path) -> pa.Table:
    try:
        table = pq.read_table(path) if path.suffix == ".parquet" else pyarrow.csv.read_csv(path)
    except (OSError, pa.ArrowException) as error:
        raise UserError(f"{path}: cannot be read: {error}") from error
    return table.replace_schema_metadata(None).combine_chunks()


def _no_rows(schema: pa.Schema) -> pa.Table:
    return schema.append(pa.field(ROW_ID, pa.int64())).empty_table()
