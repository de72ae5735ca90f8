"""What lies in a folder and whether something is there, where an error of the file system is not taken for a no.

`Path.glob` leaves out a folder that it may not list, and from Python 3.13 on one whose disk or file server fails; from
Python 3.14 on `Path.exists`, `is_file` and `is_dir` say no to every such error. A run that believed them would start
anew beside its checkpoints, or count a part of the rows.
"""

import errno
import os
import stat
from fnmatch import fnmatchcase
from pathlib import Path

_NOTHING_THERE = (errno.ENOENT, errno.ENOTDIR, errno.ELOOP)


def matching(folder: Path, pattern: str) -> list[Path]:
    """Paths below a folder that match, in the order of their names; none where there is no such folder.

    Args:
        pattern: as for `Path.glob`, without `**`.

    Raises:
        OSError: a folder on the way cannot be listed.
    """
    first, _, rest = pattern.partition("/")
    try:
        names = sorted(name for name in os.listdir(folder) if fnmatchcase(name, first))
    except OSError as error:
        if error.errno not in _NOTHING_THERE:
            raise
        return []
    found = [folder / name for name in names]
    return [path for one in found for path in matching(one, rest)] if rest else found


def is_there(path: Path) -> bool:
    """Whether there is anything, links followed; raises an `OSError` where that cannot be told."""
    return _mode(path) is not None


def is_file(path: Path) -> bool:
    """Whether there is a regular file, links followed; raises as `is_there` does."""
    mode = _mode(path)
    return mode is not None and stat.S_ISREG(mode)


def is_folder(path: Path) -> bool:
    """Whether there is a folder, links followed; raises as `is_there` does."""
    mode = _mode(path)
    return mode is not None and stat.S_ISDIR(mode)


def _mode(path: Path) -> int | None:
    try:
        return path.stat().st_mode
    except OSError as error:
        if error.errno not in _NOTHING_THERE:
            raise
        return None
    except ValueError:  # a name that no file can have
        return None
