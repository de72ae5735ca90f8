"""Where the host waited for the GPU, as torch itself tells it."""

import warnings
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch

from tests.rehearsal.census import place

_SAID = "called a synchronizing CUDA operation"


@contextmanager
def waits() -> Iterator[Counter[str]]:
    """Counts, by place, what `torch.cuda.set_sync_debug_mode` finds in the block; without a GPU that is nothing.

    The mode is "warn" and every warning a line of the count: "error" would end at the first, which may be allowed.
    """
    found: Counter[str] = Counter()

    def note(message: Warning | str, *_: Any, **__: Any) -> None:
        if _SAID in str(message):
            found[place()] += 1

    with warnings.catch_warnings():
        warnings.filterwarnings("always", message=f".*{_SAID}.*")
        warnings.showwarning = note
        if torch.cuda.is_available():
            torch.cuda.set_sync_debug_mode("warn")
        try:
            yield found
        finally:
            if torch.cuda.is_available():
                torch.cuda.set_sync_debug_mode("default")
