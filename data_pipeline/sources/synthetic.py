"""The synthetic feed as raw log files, written once for a set of parameters, and as a source that reads them."""

import json
from collections.abc import Iterable, Mapping
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from data_pipeline.own_folder import OwnFolder, sweep
from data_pipeline.sources import RawTypes, Unit
from data_pipeline.sources.parquet_log import ParquetLog, fingerprint, list_files
from data_pipeline.sources.synthetic_world import (
    FIRST_DAY_MS,
    HISTORY,
    HOUR_MS,
    SEGMENTS,
    TOPICS,
    Day,
    World,
    make_world,
    play_day,
)
from rankmixer_dist.config import SyntheticSource
from rankmixer_dist.errors import UserError, disk_errors_told
from rankmixer_dist.schema import ROW_ID, TIMESTAMP, USER_ID
from rankmixer_dist.small_file import read_json
from rankmixer_dist.there import is_folder, is_there

WORLD_NAME = "world.json"
GENERATOR_VERSION = 2
"""Raised whenever the same parameters give other rows."""

_ROW_GROUP_ROWS = 100_000


class SyntheticLog:
    """The synthetic feed's log files; the true probabilities are known, there is nothing to join."""

    name = "synthetic"
    outcome_columns = frozenset({"finish", "skip", "like"})
    leaking_columns = frozenset({"p_finish", "p_skip", "p_like"})
    time_column = TIMESTAMP
    truth_columns: Mapping[str, str] = {"finish": "p_finish", "skip": "p_skip", "like": "p_like"}
    drops_duplicates = False
    flags: Mapping[str, str] = {}

    def __init__(self, config: SyntheticSource, columns: Iterable[str]) -> None:
        self._log = ParquetLog(config.path, {USER_ID, TIMESTAMP, *columns, *self.truth_columns.values()})

    def schema(self) -> pa.Schema:
        """Raw columns that are read, `row_id` included."""
        return self._log.schema.append(pa.field(ROW_ID, pa.int64()))

    def names(self) -> list[str]:
        """All columns of the log."""
        return [*self._log.names, ROW_ID]

    def types(self) -> RawTypes:
        """The types of the log's files."""
        return self._log.types

    def units(self) -> list[Unit]:
        """One unit a row group."""
        return self._log.units()

    def fingerprint(self) -> str:
        """Over the log files and `world.json`."""
        return fingerprint(self._log.paths, list_files(self._log.paths[0].parent, WORLD_NAME))

    def side_tables(self) -> dict[str, pa.Table]:
        """None."""
        return {}

    def read(self, unit: Unit, side_tables: Mapping[str, pa.Table]) -> pa.Table:
        """Raw columns of a unit."""
        return self._log.read(unit)


def write_synthetic_log(config: SyntheticSource) -> bool:
    """Writes the log files `log_<day>_<part>.parquet` and `world.json`, complete or not at all; True when it did.

    The rows depend on the parameters alone; the number of files only says where they are cut.

    Raises:
        UserError: the folder holds a log of other parameters, or something else altogether, or cannot be written.
    """
    parameters = config.model_dump(mode="json", exclude={"kind", "path"}) | {"generator_version": GENERATOR_VERSION}
    if is_there(config.path) and not (is_folder(config.path) and not any(config.path.iterdir())):
        _check_existing(config.path, parameters)
        return False
    prefix = f"{config.path.name}.partial-"
    sweep(config.path.parent, prefix)
    with OwnFolder(config.path.parent, prefix) as aside:
        with disk_errors_told(aside.path):
            _write_days(config, aside.path)
            (aside.path / WORLD_NAME).write_text(json.dumps(parameters, indent=1) + "\n")
        try:
            aside.publish(config.path)
        except OSError as error:
            raise UserError(f"source.path {config.path}: appeared while it was being written ({error})") from error
    return True


def _check_existing(folder: Path, parameters: Mapping[str, Any]) -> None:
    try:
        found = read_json(folder / WORLD_NAME)
    except UserError as error:
        raise UserError(f"source.path {folder}: exists, but is no synthetic log ({error}); choose another") from error
    if not isinstance(found, dict):
        raise UserError(f"source.path {folder}: its {WORLD_NAME} is not one of a synthetic log; choose another")
    for key in parameters:
        if found.get(key) != parameters[key]:
            raise UserError(
                f"source.path {folder}: holds a synthetic log of other parameters ({key} is {found.get(key)}, the "
                f"config's is {parameters[key]}); delete the folder or set source.path to another one"
            )


def _write_days(config: SyntheticSource, folder: Path) -> None:
    world = make_world(seed=config.seed, users=config.users, videos=config.videos, days=config.days)
    watched_UH = np.full((config.users, HISTORY), -1, dtype=np.int32)
    for day in range(config.days):
        rows = config.rows * (day + 1) // config.days - config.rows * day // config.days
        played = play_day(world, seed=config.seed, day=day, rows=rows, watched_UH=watched_UH)
        table = _raw_table(world, played, np.random.default_rng([config.seed, 2, day]))
        date = (datetime.fromtimestamp(FIRST_DAY_MS / 1000, UTC) + timedelta(days=day)).date()
        for part in range(config.files_per_day):
            start, stop = (rows * p // config.files_per_day for p in (part, part + 1))
            path = folder / f"log_{date}_{part:04d}.parquet"
            pq.write_table(table.slice(start, stop - start), path, row_group_size=_ROW_GROUP_ROWS, compression="zstd")


def _raw_table(world: World, day: Day, rng: np.random.Generator) -> pa.Table:
    """The day as a log writes it, with the gaps that logs have."""
    rows, user, video = len(day.user_R), day.user_R, day.video_R
    duration_V = np.round(np.exp(world.log_duration_V), 1)
    columns = {
        TIMESTAMP: pa.array(day.timestamp_R),
        USER_ID: pa.array(user + 1),
        "age_segment": _with_gaps(rng, np.array(SEGMENTS)[world.segment_U[user]], 0.03),
        "activity": _with_gaps(rng, world.activity_U[user].astype(np.float32), 0.05),
        "watched": _lists(day.watched_RH >= 0, (day.watched_RH + _FIRST_VIDEO_ID).astype(np.int64)),
        "liked_tags": _lists(world.liked_UT[user], np.broadcast_to(np.array(TOPICS), (rows, len(TOPICS)))),
        "video_id": pa.array(video + _FIRST_VIDEO_ID),
        "author_id": _with_gaps(rng, world.author_V[video] + _FIRST_AUTHOR_ID, 0.03),
        "tags": _tags(world, video, gaps_R=rng.random(rows) < 0.02),
        "duration_s": _with_gaps(rng, duration_V[video].astype(np.float32), 0.03),
        "video_age_hours": pa.array(((day.timestamp_R - world.born_ms_V[video]) / HOUR_MS).astype(np.float32)),
        "hour": pa.array(((day.timestamp_R // HOUR_MS) % 24).astype(np.int8)),
    }
    columns |= {name: pa.array(values) for name, values in (day.outcomes | day.truth).items()}
    return pa.table(columns)


_FIRST_VIDEO_ID, _FIRST_AUTHOR_ID = 10_001, 501


def _with_gaps(rng: np.random.Generator, values: np.ndarray, share: float) -> pa.Array:
    return pa.array(values, mask=rng.random(len(values)) < share)


def _lists(keep_RN: np.ndarray, values_RN: np.ndarray) -> pa.Array:
    """The kept values of each row as a list."""
    offsets = np.concatenate([[0], keep_RN.sum(axis=1).cumsum()]).astype(np.int32)
    return pa.ListArray.from_arrays(pa.array(offsets), pa.array(values_RN[keep_RN]))


def _tags(world: World, video_R: np.ndarray, *, gaps_R: np.ndarray) -> pa.Array:
    """Topic and, but for every third video, subtopic; some rows have no tags."""
    topic_V = np.array(TOPICS)[world.topic_V]
    tags_V2 = np.stack([topic_V, np.char.add(np.char.add(topic_V, "/"), world.subtopic_V.astype(str))], axis=1)
    keep_V2 = np.stack([np.ones(len(topic_V), bool), np.arange(len(topic_V)) % 3 > 0], axis=1)
    tags = _lists(keep_V2[video_R] & ~gaps_R[:, None], tags_V2[video_R])
    return pc.if_else(pa.array(gaps_R), pa.scalar(None, tags.type), tags)
