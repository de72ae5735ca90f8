"""Opens checkpoints: nothing is read from one whose bytes are not those that were written."""

from pathlib import Path

from rankmixer_dist.checkpoint.about import ABOUT_NAME, About, read_about, verify_files
from rankmixer_dist.checkpoint.folder import checkpoints, step_of
from rankmixer_dist.errors import UserError


def open_checkpoint(path: Path, *, rank: int = 0, world_size: int = 1) -> About:
    """Reads what a checkpoint says of itself and verifies this rank's share of its files.

    Raises:
        UserError: a file is missing or damaged; offers the checkpoint before, if there is one.
    """
    try:
        about = read_about(path)
        share = sorted(about.files)[rank::world_size]
        verify_files(path, {name: about.files[name] for name in share})
    except UserError as error:
        raise UserError(f"{error}; {_offer(path)}") from error
    return about


def _offer(path: Path) -> str:
    older = [other for other in checkpoints(path.parent.parent) if step_of(other) < step_of(path)]
    usable = [other for other in older if (other / ABOUT_NAME).is_file()]
    if usable:
        return f"to go on from {usable[-1].name}, the one before it, remove the folder {path}"
    return f"no older checkpoint is beside it; to begin anew, remove the run directory {path.parent.parent}"
