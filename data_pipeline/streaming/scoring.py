"""One shard's rows of one window to scores on disk, and a window's scores to its figures."""

import os
import shutil
import tempfile
import uuid
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from data_pipeline.assemble import BatchAssembler
from data_pipeline.streaming.shards import rows_of
from rankmixer_dist.batch import Batch
from rankmixer_dist.checksum import file_checksum
from rankmixer_dist.errors import UserError, one_line
from rankmixer_dist.evaluation.figures import SerialWorkers, figures_of
from rankmixer_dist.evaluation.sorting import Sorter, SpillRoom
from rankmixer_dist.metrics import Window
from rankmixer_dist.schema import LABEL_PREFIX, ROW_ID, TIMESTAMP, USER_ID, Schema
from rankmixer_dist.there import matching

SCORE_PREFIX = "score_"
_KEY = (ROW_ID, USER_ID, TIMESTAMP)
_PARTIAL = ".partial"
_CHECKPOINT = b"checkpoint"
_HELD_ROWS, _MEMORY_ROWS = 1 << 21, 1 << 20
"""Rows times tasks of a window that stay in memory; rows of a larger one that are sorted or counted at a time."""


class Scorer(Protocol):
    """A model that scores."""

    def score(self, batch: Batch) -> np.ndarray:
        """Probabilities, float32 [B, K], padding rows included."""
        ...


class MakeScorer(Protocol):
    """Opens a checkpoint; it goes to the actors by pickle."""

    def __call__(self, checkpoint: Path) -> Scorer: ...


@dataclass(frozen=True)
class Item:
    """A unit of work: the rows of `window` in `shard`, by the model in `checkpoint`, to `target`.

    The file at `target` is complete or absent, and its being there is the proof that the work is done.
    """

    shard: Path
    checksum: str
    window: Window
    checkpoint: Path
    target: Path


@dataclass(frozen=True)
class Figures:
    """Of a window: distinct rows, rows that came again, rows whose score is not finite, the figures of each task."""

    rows: int
    duplicates: int
    not_finite: int
    tasks: dict[str, Any]


def score(item: Item, scorer: Scorer, schema: Schema, assemble: BatchAssembler, batch_size: int) -> int:
    """Writes an item's scores and returns its rows.

    Raises:
        UserError: the shard is not what it was when it came, or cannot be read.
    """
    try:
        changed = file_checksum(item.shard) != item.checksum
    except OSError as error:
        raise UserError(f"{item.shard}: gone before its rows were scored ({error.strerror})") from error
    if changed:
        raise UserError(f"{item.shard}: changed under its name; publish new rows under a new name")
    item.target.parent.mkdir(parents=True, exist_ok=True)
    # Of its own name: an actor that is taken for dead may still be writing.
    aside = item.target.with_name(f"{item.target.name}.{uuid.uuid4().hex}{_PARTIAL}")
    tasks = tuple(schema.tasks)
    columns = _columns(tasks).with_metadata({_CHECKPOINT: item.checkpoint.name.encode()})
    rows = 0
    try:
        with pq.ParquetWriter(aside, columns) as writer:
            for tables in _in_batches(rows_of(item.shard, assemble.columns(), schema, item.window), batch_size):
                filled = sum(table.num_rows for table in tables)
                batch = assemble(tables, global_weight=filled)
                writer.write_table(_scored(batch, scorer.score(batch)[:filled], columns))
                rows += filled
        with aside.open("rb") as written:
            os.fsync(written.fileno())
        os.replace(aside, item.target)
    finally:
        with suppress(FileNotFoundError):
            aside.unlink()
    return rows


def figures(files: Sequence[Path], window: Window, checkpoint: str, tasks: Sequence[str]) -> Figures:
    """A window's exact figures from its score files; a row that is in it again counts once, by the first file.

    The same row has the same id, user and time: shards that were prepared apart number their rows alike.

    Raises:
        UserError: a file cannot be read, or holds scores of another checkpoint.
    """
    files = sorted(files)
    keys = [
        np.stack([table[name].to_numpy() for name in _KEY]) for table in (_read(path, list(_KEY)) for path in files)
    ]
    first = _first_of_each(np.concatenate([np.empty((len(_KEY), 0), np.int64), *keys], axis=1))
    counts = [own_keys.shape[1] for own_keys in keys]
    del keys
    not_finite = 0
    with _room(len(first) * len(tasks), files) as room:
        sorter = Sorter(list(tasks), room)
        for path, kept_R in zip(files, np.split(first, np.cumsum(counts)[:-1]) if files else (), strict=True):
            not_finite += _add_file(path, kept_R, window, checkpoint, tasks, into=sorter)
        sorter.finish()
        found = figures_of([sorter.rows], SerialWorkers(), room)
    rows = int(first.sum())
    figures = {} if not_finite else {task: found[task][None].figures for task in tasks}
    return Figures(rows, len(first) - rows, not_finite, figures)


@contextmanager
def _room(rows: int, files: Sequence[Path]) -> Iterator[SpillRoom]:
    """Memory for few rows, a folder beside the files for many."""
    if rows <= _HELD_ROWS:
        yield SpillRoom(None, _MEMORY_ROWS)
        return
    with tempfile.TemporaryDirectory(dir=files[0].parent, suffix=_PARTIAL) as name:
        yield SpillRoom(Path(name), _MEMORY_ROWS)


def _first_of_each(keys_KR: np.ndarray) -> np.ndarray:
    """[R] bool: no column before has the same keys; keys_KR int64 [keys, R]."""
    order = np.lexsort(keys_KR)
    sorted_KR = keys_KR[:, order]
    first = np.zeros(keys_KR.shape[1], bool)
    first[order[1:]] = (sorted_KR[:, 1:] != sorted_KR[:, :-1]).any(axis=0)
    first[order[:1]] = True
    return first


def sweep(folder: Path) -> None:
    """Removes what actors that died while they wrote left in a folder of windows."""
    for left in matching(folder, f"*/*{_PARTIAL}"):
        shutil.rmtree(left, ignore_errors=True)  # a window's sorted rows
        with suppress(FileNotFoundError):
            left.unlink()


def _add_file(
    path: Path, kept_R: np.ndarray, window: Window, checkpoint: str, tasks: Sequence[str], *, into: Sorter
) -> int:
    """Adds a file's kept rows to those of its window; returns how many of them have a score that is not finite."""
    table = _read(path, None)
    scored_by = table.schema.metadata[_CHECKPOINT].decode()
    if scored_by != checkpoint:
        raise UserError(
            f"{path}: scores of {scored_by}, which do not rank against those of {checkpoint}; remove it, and rows of "
            f"{window} are scored again"
        )
    scores = {task: table[SCORE_PREFIX + task].to_numpy() for task in tasks}
    finite_R = np.logical_and.reduce([np.isfinite(of_task) for of_task in scores.values()])
    users_R = table[USER_ID].to_numpy()
    for task in tasks:
        labels_R = table[LABEL_PREFIX + task].to_numpy()
        used_R = kept_R & finite_R & ~np.isnan(labels_R)
        into.add(task, {"scores": scores[task][used_R], "labels": labels_R[used_R], "user_ids": users_R[used_R]})
    return int((kept_R & ~finite_R).sum())


def _in_batches(tables: Iterator[pa.Table], size: int) -> Iterator[list[pa.Table]]:
    """The same rows in lists of tables of `size` rows together, the last one fewer."""
    batch: list[pa.Table] = []
    free = size
    for table in tables:
        start = 0
        while start < table.num_rows:
            part = table.slice(start, free)
            batch.append(part)
            start += part.num_rows
            free -= part.num_rows
            if not free:
                yield batch
                batch, free = [], size
    if batch:
        yield batch


def _scored(batch: Batch, scores_RK: np.ndarray, columns: pa.Schema) -> pa.Table:
    rows = len(scores_RK)
    values = [column.numpy()[:rows] for column in (batch.row_id_B, batch.user_id_B, batch.timestamp_B)]
    for place in range(scores_RK.shape[1]):
        values += [batch.labels_BK.numpy()[:rows, place], scores_RK[:, place]]
    return pa.table([pa.array(value) for value in values], schema=columns)


def _columns(tasks: Sequence[str]) -> pa.Schema:
    fields = [pa.field(name, pa.int64()) for name in (ROW_ID, USER_ID, TIMESTAMP)]
    fields += [pa.field(prefix + task, pa.float32()) for task in tasks for prefix in (LABEL_PREFIX, SCORE_PREFIX)]
    return pa.schema(fields)


def _read(path: Path, columns: list[str] | None) -> pa.Table:
    try:
        return pq.ParquetFile(path).read(columns=columns)
    except (pa.ArrowException, OSError) as error:
        raise UserError(f"{path}: cannot be read ({one_line(error)}); remove it, and it is scored again") from error
