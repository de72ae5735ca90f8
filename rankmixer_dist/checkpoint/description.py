"""What a checkpoint says of itself, with a way out where it is damaged; needs no torch."""

from pathlib import Path

from rankmixer_dist.checkpoint.about import ABOUT_NAME, About, read_about
from rankmixer_dist.checkpoint.folder import checkpoints
from rankmixer_dist.errors import UserError
from rankmixer_dist.there import is_file


def describe_checkpoint(path: Path) -> About:
    """What a checkpoint says of itself, before its files are looked at.

    Raises:
        UserError: it is damaged; offers the checkpoint before, if there is one.
    """
    try:
        return read_about(path)
    except UserError as error:
        raise UserError(f"{error}; {offer(path)}") from error


def offer(path: Path) -> str:
    """What to do about a damaged checkpoint."""
    beside = checkpoints(path.parent.parent)
    older = beside[: beside.index(path)] if path in beside else []
    usable = [other for other in older if is_file(other / ABOUT_NAME)]
    if usable:
        return f"to go on from {usable[-1].name}, the one before it, move the folder {path} away"
    return "no older checkpoint is beside it; to begin anew, choose another `name`"
