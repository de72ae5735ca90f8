"""Imports of torch and its kin without a search for garbage after each few hundred objects that stay."""

import gc
from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def large_imports() -> Iterator[None]:
    """What is imported here is taken for permanent: the collector neither runs meanwhile nor looks at it afterwards.

    A rank that trains imports half a million objects; searching them for garbage takes a sixth of its start.
    """
    enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if enabled:
            gc.freeze()
            gc.enable()
