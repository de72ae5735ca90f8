"""Opens checkpoints: nothing is read from one whose bytes are not those that were written."""

from pathlib import Path

from rankmixer_dist.checkpoint.about import About, read_about, verify_files
from rankmixer_dist.checkpoint.description import offer
from rankmixer_dist.checkpoint.folder import TENSORS, checkpoints, step_of
from rankmixer_dist.checkpoint.index import INDEX_NAME, ends_of_files, read_index
from rankmixer_dist.errors import UserError


def open_checkpoint(path: Path, *, rank: int = 0, world_size: int = 1) -> About:
    """Reads what a checkpoint says of itself and verifies this rank's share of its files.

    Raises:
        UserError: a file is missing or damaged; offers the checkpoint before, if there is one.
    """
    try:
        about = read_about(path)
        if path in checkpoints(path.parent.parent) and about.step != step_of(path):
            raise UserError(f"{path}: holds step {about.step}; give the copy a name that does not begin with step-")
        share = sorted(about.files)[rank::world_size]
        verify_files(path, {name: about.files[name] for name in share})
        if rank == 0:
            _require_sealed(path, about)
    except UserError as error:
        raise UserError(f"{error}; {offer(path)}") from error
    return about


def _require_sealed(path: Path, about: About) -> None:
    """Every byte that the index names must be one that the seal is for.

    Raises:
        UserError: it is not, or there is no such index.
    """
    for name, end in ends_of_files(read_index(path / TENSORS).values()).items():
        sealed = about.files.get(f"{TENSORS}/{name}")
        if sealed is None or sealed.bytes < end:
            raise UserError(
                f"{path / TENSORS / name}: damaged: the index names {end:,} bytes of it that are not sealed"
            )
    if f"{TENSORS}/{INDEX_NAME}" not in about.files:
        raise UserError(f"{path / TENSORS / INDEX_NAME}: damaged: it is not sealed")
