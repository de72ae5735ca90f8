"""What a run leaves for later eyes: `metrics.jsonl`, a line a log interval, and the same for TensorBoard."""

import io
import json
import math
import os
import socket
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from tensorboard.compat.proto.event_pb2 import Event, SessionLog
from tensorboard.summary.writer.record_writer import RecordWriter
from torch.utils.tensorboard.summary import scalar

from rankmixer_dist.report.training_log import flat, read_lines
from rankmixer_dist.there import is_file
from rankmixer_dist.train.full_disk import Complaint, RecordFile


def cut_back(path: Path, step: int, *, keep: Callable[[dict[str, Any]], bool] = lambda _: False) -> None:
    """Removes the lines of steps after `step`, left by a run that died after its last checkpoint: it takes them again.

    Args:
        keep: lines that stay all the same.

    Raises:
        UserError: a line other than the last is not JSON.
        OSError: they cannot be removed.
    """
    kept = [line for line in read_lines(path) if line["step"] <= step or keep(line)]
    text = "".join(json.dumps(line) + "\n" for line in kept).encode()
    if is_file(path) and path.read_bytes().startswith(text):
        os.truncate(path, len(text))  # which a full disk has room for
        return
    aside = path.with_suffix(".partial")
    try:
        aside.write_bytes(text)
        os.replace(aside, path)
    except OSError:
        aside.unlink(missing_ok=True)
        raise


class MetricsLog:
    """Appends to a run's `metrics.jsonl` and `tensorboard/`; on a full disk, lines are left out and that is told once.

    Args:
        resume_step: the run's newest step; lines of later ones are removed.
    """

    def __init__(self, run_dir: Path, *, resume_step: int) -> None:
        complaint = Complaint("the run goes on without log lines until they can be written")
        path = run_dir / "metrics.jsonl"
        self._lines: RecordFile | None = None  # where later lines could not be removed, none may follow them
        with complaint.instead_of_error(path):
            cut_back(path, resume_step)
            self._lines = RecordFile(path, complaint)
        name = f"events.out.tfevents.{int(time.time()):010d}.{socket.gethostname()}.{os.getpid()}.0"
        self._board = RecordFile(run_dir / "tensorboard" / name, complaint)
        begin = Event(wall_time=time.time(), file_version="brain.Event:2")
        session = SessionLog(status=SessionLog.START)  # tells TensorBoard to forget what comes from this step on
        self._board.append(_records([begin, Event(wall_time=time.time(), step=resume_step + 1, session_log=session)]))

    def write(self, line: dict[str, Any]) -> None:
        """Writes one interval; NaN and infinity become null, which JSON has."""
        if self._lines is not None:
            self._lines.append((json.dumps(_finite(line)) + "\n").encode())
        figures = [(key, value) for key, value in flat(line) if isinstance(value, int | float) and key != "step"]
        events = [
            Event(wall_time=time.time(), step=line["step"], summary=scalar(key, value))
            for key, value in figures
            if math.isfinite(value)
        ]
        self._board.append(_records(events))

    def close(self) -> None:
        """Gives both files back."""
        if self._lines is not None:
            self._lines.close()
        self._board.close()


def _records(events: Sequence[Event]) -> bytes:
    """As TensorBoard's files hold them. Its own writer has a thread, which dies on a full disk with a traceback."""
    buffer = io.BytesIO()
    writer = RecordWriter(buffer)
    for event in events:
        writer.write(event.SerializeToString())
    return buffer.getvalue()


def _finite(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _finite(item) for key, item in value.items()}
    return None if isinstance(value, float) and not math.isfinite(value) else value
