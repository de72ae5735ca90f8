"""A run's folder of checkpoints: which are there, which is the newest and the best, which may go.

checkpoints/
  latest               name of the newest complete checkpoint
  best                 name of the best one by the metric that the config names
  step-00000120/
    checkpoint.json    step, data position, config, versions, checksums of the files beside it
    tensors/           tables, dense weights, optimizer state, random numbers' state
"""

import os
import re
import shutil
from pathlib import Path

from rankmixer_dist.errors import UserError
from rankmixer_dist.there import is_file, is_folder, is_there, matching

FOLDER_NAME = "checkpoints"
LATEST, BEST = "latest", "best"
TENSORS = "tensors"
_PREFIX, _ASIDE = "step-", ".partial"
_STEP = _PREFIX + r"(?!0+\b)(\d{8}|[1-9]\d{8,17})"
_NAME = re.compile(_STEP, re.ASCII)
_LEFT = re.compile(rf"({_STEP}(\.old)?\.partial|({LATEST}|{BEST})\.partial\.txt)", re.ASCII)
"""What a writer leaves that is killed; whatever else lies there is not ours to remove."""


def checkpoint_path(run_dir: Path, step: int) -> Path:
    """Where a run's checkpoint of `step` lies."""
    return run_dir / FOLDER_NAME / f"{_PREFIX}{step:08d}"


def checkpoints(run_dir: Path) -> list[Path]:
    """Complete checkpoints of a run, oldest first; what has another name than `checkpoint_path` gives is nobody's."""
    folder = run_dir / FOLDER_NAME
    found = [path for path in matching(folder, _PREFIX + "*") if _NAME.fullmatch(path.name) and is_folder(path)]
    return sorted(found, key=step_of)


def step_of(checkpoint: Path) -> int:
    """The step after which a checkpoint was made, by the name that `checkpoint_path` gave it."""
    return int(checkpoint.name.removeprefix(_PREFIX))


def begin(final: Path) -> Path:
    """An empty folder to write a checkpoint into; what died writers left is removed."""
    final.parent.mkdir(parents=True, exist_ok=True)
    sweep(final.parent.parent)
    aside = final.with_name(final.name + _ASIDE)
    aside.mkdir()
    return aside


def sweep(run_dir: Path) -> None:
    """Removes what a process that died while it wrote or removed a checkpoint left of it."""
    for left in matching(run_dir / FOLDER_NAME, f"*{_ASIDE}*"):
        if _LEFT.fullmatch(left.name):
            _delete(left)


def publish(aside: Path, final: Path) -> None:
    """Makes a written checkpoint a complete one, and the newest."""
    if is_there(final):  # a run that went back to an older checkpoint and came by again
        _remove(final)
    os.replace(aside, final)
    point(final, LATEST)


def discard(aside: Path) -> None:
    """Removes what could be written of a checkpoint."""
    shutil.rmtree(aside, ignore_errors=True)


def point(checkpoint: Path, pointer: str) -> None:
    """Makes a pointer name a complete checkpoint; it never names another one in between."""
    aside = checkpoint.parent / f"{pointer}{_ASIDE}.txt"
    with aside.open("w") as file:
        file.write(checkpoint.name + "\n")
        file.flush()
        os.fsync(file.fileno())
    os.replace(aside, checkpoint.parent / pointer)
    _sync(checkpoint.parent)


def pointed(run_dir: Path, pointer: str) -> Path | None:
    """The checkpoint that a pointer names, if there is one."""
    path = run_dir / FOLDER_NAME / pointer
    if not is_file(path):
        return None
    checkpoint = path.parent / path.read_text(errors="replace").strip()
    return checkpoint if checkpoint in checkpoints(run_dir) else None


def prune(run_dir: Path, *, keep: int) -> None:
    """Removes the oldest checkpoints beyond `keep`, but not the best one."""
    best = pointed(run_dir, BEST)
    for path in checkpoints(run_dir)[:-keep]:
        if path != best:
            _remove(path)


def named_checkpoint(run_dir: Path, name: str, *, key: str) -> Path:
    """The checkpoint of a run that `latest`, `best`, `step-00000120` or, for short, `step-120` names.

    Raises:
        UserError: it is not there; says which are. `key` is the config key that named it.
    """
    if name == LATEST:
        return find_checkpoint(run_dir, key=key)
    if name == BEST:
        return find_checkpoint(run_dir, key=key, pointer=BEST)
    wanted, there = checkpoint_path(run_dir, int(name.removeprefix(_PREFIX))), checkpoints(run_dir)
    if wanted not in there:
        names = ", ".join(path.name for path in there) or "none"
        raise UserError(f"{key} {run_dir}: no such checkpoint there, but these: {names}")
    return wanted


def find_checkpoint(path: Path, *, key: str, pointer: str | None = None) -> Path:
    """The newest checkpoint of a run directory (or the one that `pointer` names), or `path` if it is a checkpoint.

    Raises:
        UserError: it is neither; `key` is the config key that named it.
    """
    if path.parent.name == FOLDER_NAME and is_folder(path):
        return path
    checkpoint = pointed(path, pointer) if pointer else next(reversed(checkpoints(path)), None)
    if checkpoint is None and pointer and checkpoints(path):
        raise UserError(
            f"{key} {path}: no checkpoint there is marked as {pointer}; train with checkpoint.{pointer} set"
        )
    if checkpoint is None:
        raise UserError(f"{key} {path}: no complete checkpoint there; train that run first")
    return checkpoint


def _remove(checkpoint: Path) -> None:
    """Renamed first: whoever reads, or comes after this process was killed, finds it whole or not at all."""
    gone = checkpoint.with_name(checkpoint.name + ".old" + _ASIDE)
    os.replace(checkpoint, gone)
    _delete(gone)


def _delete(path: Path) -> None:
    if is_folder(path) and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink()


def _sync(folder: Path) -> None:
    """Makes renames in a folder survive a loss of power."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
