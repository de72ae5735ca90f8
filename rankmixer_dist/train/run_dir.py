"""The run directory: it belongs to one config, and says so."""

import fcntl
import json
import os
import socket
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from rankmixer_dist.checkpoint.about import ABOUT_NAME, read_about
from rankmixer_dist.checkpoint.folder import checkpoints, find_checkpoint
from rankmixer_dist.config import MANNER, RunConfig
from rankmixer_dist.config.yaml_text import read_resolved
from rankmixer_dist.errors import UserError, disk_errors_told
from rankmixer_dist.identity import Difference, Rename, first_difference, in_order_of, order_of
from rankmixer_dist.small_file import write_text
from rankmixer_dist.there import is_there
from rankmixer_dist.train.full_disk import Complaint

_PLACES = {"name", "source.path", "data.prepared", "train.start_from.run"}
"""Where things lie and what they are called. Checkpoints know their data by its content."""
CHANGEABLE = MANNER | _PLACES | {"train.epochs", "train.max_steps", "train.on_non_finite"}
"""Keys that may differ between two starts of a run: how it is done, where things lie, how long it is and how it meets
rows that make no sense; not what it learns."""


LOCK_NAME = "lock"
_LOCK_PATIENCE_S = 5.0
"""A process that was killed holds its lock until the kernel has taken its memory apart."""


@contextmanager
def only_job(run_dir: Path, does: str = "trains") -> Iterator[None]:
    """Makes a directory and keeps other jobs out of it for the length of a `with` block; one rank calls it.

    The lock goes with the process, however it ends. Where the file system has no locks, there is none.

    Raises:
        UserError: another job `does` its work here; says where it runs.
    """
    path = run_dir / LOCK_NAME
    with disk_errors_told(run_dir):
        run_dir.mkdir(parents=True, exist_ok=True)
        opened = path.open("a+")
    with opened as file:
        give_up = time.monotonic() + _LOCK_PATIENCE_S
        while True:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except BlockingIOError as error:
                if time.monotonic() > give_up:
                    file.seek(0)
                    holder = file.read().strip() or "another job"
                    raise UserError(f"{run_dir}: {holder} {does} here; stop it, or choose another `name`") from error
                time.sleep(0.1)
            except OSError:  # this file system has no locks
                break
        with suppress(OSError):  # on a full disk, the lock has no name on it
            os.ftruncate(file.fileno(), 0)
            os.write(file.fileno(), f"process {os.getpid()} on {socket.gethostname()}\n".encode())
        yield


def is_trained_now(run_dir: Path) -> bool:
    """Whether a job trains in a run directory now; no where the file system has no locks."""
    try:
        with (run_dir / LOCK_NAME).open() as file:
            fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    except OSError:
        return False
    return False


def check_run_dir(config: RunConfig) -> None:
    """Makes sure that the run directory holds no other run.

    Raises:
        UserError: it holds another config; names the first key that differs.
    """
    path = config.run_dir / "config.yaml"
    if is_there(path):
        difference = _difference(path, config)
        if difference is not None:
            key, old, new = difference
            raise UserError(
                f"{config.run_dir} already holds another config: {key} was {old!r} and is now {new!r}; choose another "
                "`name`, which train.start_from may begin with these weights"
            )


def claim_run_dir(config: RunConfig) -> Path:
    """Makes the run directory and writes `config.yaml` into it; called by one rank; raises as `check_run_dir` does."""
    check_run_dir(config)
    config.run_dir.mkdir(parents=True, exist_ok=True)
    path, text = config.run_dir / "config.yaml", config.to_yaml()
    try:
        if not is_there(path) or path.read_text() != text:
            write_text(path, text)
    except UserError as error:
        if not is_there(path):
            raise
        # The one that is there says the same of all that makes the run what it is.
        Complaint("it stays as it was").tell(path, error)
    return config.run_dir


def require_run(config: RunConfig) -> Path:
    """The directory of a run that has been trained with this config.

    Raises:
        UserError: there is none, or it holds another config.
    """
    path = config.run_dir / "config.yaml"
    if not is_there(path):
        raise UserError(f"{config.run_dir}: no run here; train it with launch/train.py first")
    difference = _difference(path, config)
    if difference is not None:
        key, old, new = difference
        raise UserError(
            f"{config.run_dir} was trained with {key} {old!r}, not {new!r}; give the config it was trained with"
        )
    return config.run_dir


def write_json(path: Path, value: Any) -> None:
    """Writes JSON, complete or not at all; raises as `write_text` does."""
    write_text(path, json.dumps(value, indent=1) + "\n")


def in_runs_order(config: RunConfig) -> RunConfig:
    """The config with the keys of its features in the order of the run that it goes on with, or starts from.

    YAML mappings have no order, but a model's rows and columns do. Where the keys themselves differ, what compares the
    config with the run, or takes over weights, says so.
    """
    start, rename = config.train.start_from, Rename({})
    order = _order_in(config.run_dir)
    if order is None and start is not None:
        with suppress(UserError):  # whoever opens it tells
            order = _order_in(find_checkpoint(start.run, key="train.start_from.run"))
            rename = Rename(start.rename)
    if order is None:
        return config
    return config.model_copy(update={"features": in_order_of(config.features, order, rename)})


def _order_in(folder: Path) -> dict[str, list[str]] | None:
    """The order of keys that a run directory's newest checkpoint has, or its config, or that of a checkpoint."""
    saved = [folder] if is_there(folder / ABOUT_NAME) else checkpoints(folder)[-1:]
    with suppress(UserError, KeyError, TypeError, AttributeError):  # whoever opens it tells
        if saved:
            return order_of(read_about(saved[0]).config["features"])
        return order_of(read_resolved(folder / "config.yaml")["features"])
    return None


def _difference(path: Path, config: RunConfig) -> Difference | None:
    """Of the config in a file and this one, in keys that may not differ.

    A key that the file lacks, because an earlier program wrote it, has its default: what that program did.
    """
    try:
        old = RunConfig.model_validate(read_resolved(path))
    except ValidationError as error:  # a key that has gone, or means something else
        first = error.errors()[0]
        return ".".join(map(str, first["loc"])), first["input"], None
    return first_difference(_comparable(old), _comparable(config), but=CHANGEABLE)


def _comparable(config: RunConfig) -> dict[str, Any]:
    """The keys of a config but for a feature's scope: what it does, the rows of the data show."""
    return config.model_dump(mode="json", exclude={"features": {"features": {"__all__": {"scope"}}}})
