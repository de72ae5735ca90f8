"""The file that the figures of predictions go to; it never takes the place of somebody else's."""

import json
import os
from contextlib import suppress
from pathlib import Path
from typing import Any

from data_pipeline.predictions.files import Predictions
from rankmixer_dist.errors import UserError, one_line
from rankmixer_dist.small_file import read_json
from rankmixer_dist.there import is_folder, is_there

MARK = "predictions"
"""Key that only these files have: a run's own eval.json is without."""


def figures_path(predictions: Path, out: Path | None) -> Path:
    """Where the figures will go: `out`, or `<name>.eval.json` beside the predictions.

    Raises:
        UserError: something else is there, or there is no such folder.
    """
    if out is None:
        resolved = predictions.resolve()
        if not resolved.name:
            raise UserError(f"{predictions} has nothing beside it where the figures could go: name a file by --out")
        out = resolved.with_name(f"{resolved.name}.eval.json")
    if not is_folder(out.parent):
        raise UserError(f"--out {out}: there is no folder {out.parent}")
    if is_there(out) and not _is_ours(out):
        raise UserError(f"{out} holds something else, which is not overwritten; name another file by --out")
    if not os.access(out.parent, os.W_OK):
        raise UserError(f"{out}: that folder cannot be written; name another file by --out")
    return out


def write_figures(path: Path, predictions: Predictions, figures: dict[str, Any]) -> None:
    """Writes them, complete or not at all.

    Raises:
        UserError: they cannot be written.
    """
    columns = predictions.columns
    about = {
        MARK: str(predictions.path),
        "columns": {"user": columns.user, "weight": columns.weight, "tasks": dict(columns.tasks)},
    }
    aside = path.with_name(f"{path.name}.{os.getpid()}.partial")
    try:
        aside.write_text(json.dumps(about | figures, indent=1) + "\n")
        os.replace(aside, path)
    except OSError as error:
        raise UserError(f"{path}: cannot be written, name another file by --out: {one_line(error)}") from error
    finally:
        with suppress(OSError):
            aside.unlink(missing_ok=True)


def _is_ours(path: Path) -> bool:
    try:
        held = read_json(path)
    except UserError:
        return False
    return isinstance(held, dict) and MARK in held
