"""The one kind of error that a person who runs a verb can mend."""

import difflib
from collections.abc import Iterable


class UserError(ValueError):
    """A mistake in a config, the data or the command line; the message says in one line what to change."""


def nearest(word: str, known: Iterable[str]) -> str:
    """`; did you mean 'x'?` for the known word closest to `word`, or nothing."""
    close = difflib.get_close_matches(word, list(known), n=1, cutoff=0.5)
    return f"; did you mean {close[0]!r}?" if close else ""


def one_line(error: Exception) -> str:
    """An error's text without line breaks, to be quoted in the line of a `UserError`."""
    return " ".join(str(error).split())
