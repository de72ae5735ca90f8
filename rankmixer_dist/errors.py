"""How a verb ends other than well: an error that a person can mend, a run asked to stop, a run that stalled."""

import difflib
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path

EXIT_USER_ERROR = 2
"""Exit code after a mistake that a person can mend: started again, the verb would end alike."""
EXIT_PREEMPTED = 75
"""Exit code of a run that was asked to stop, saved and left: sysexits' EX_TEMPFAIL, "try again later", for whoever
restarts jobs. torchrun turns it into 1, launch/torchrun.py does not."""
EXIT_STALLED = 70
"""Exit code of a rank that ended itself because nothing moved: sysexits' EX_SOFTWARE."""


class UserError(ValueError):
    """A mistake in a config, the data or the command line; the message says in one line what to change."""


class RankError(UserError):
    """A `UserError` that one rank meets while the others go on: nobody else can tell of it."""


class Preempted(Exception):
    """The run was asked to stop and has left everything in order; the message says where a next start goes on."""


def nearest(word: str, known: Iterable[str]) -> str:
    """`; did you mean 'x'?` for the known word closest to `word`, or nothing."""
    close = difflib.get_close_matches(word, list(known), n=1, cutoff=0.5)
    return f"; did you mean {close[0]!r}?" if close else ""


def one_line(error: BaseException) -> str:
    """An error's text without line breaks, to be quoted in the line of a `UserError`."""
    return " ".join(str(error).split())


@contextmanager
def disk_errors_told(path: Path, kind: type[UserError] = UserError) -> Iterator[None]:
    """Raises an `OSError` of the block, which writes to `path` (a full disk, a missing right), as a `UserError`."""
    try:
        yield
    except OSError as error:
        mend = "free some space, or name another place"
        raise kind(f"{path}: cannot be written ({one_line(error)}); {mend}") from error
