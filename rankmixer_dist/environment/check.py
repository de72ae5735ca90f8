"""One line of the doctor's table, and the wrapper that turns whatever goes wrong inside a check into such a line."""

# Nothing at the top of this package needs an installed package or a new Python: it has to run where both are missing.
from __future__ import annotations

import functools
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

Verdict = Literal["ok", "warn", "bad"]

IN_TREE = (Path(__file__).resolve().parents[2] / "launch" / "install.sh").exists()
"""Whether this is the source tree, or else an installed copy, beside which there is no installer."""
INSTALL = "run: bash launch/install.sh" if IN_TREE else "install rankmixer_dist again, as docs/install.md says"
INSTALL_FOR_GPUS = (
    "RANKMIXER_DEVICE=cuda bash launch/install.sh"
    if IN_TREE
    else "pip uninstall torch fbgemm-gpu-cpu, then pip install '.[cuda]', as docs/install.md says"
)
"""A command that `run` goes in front of."""
REINSTALL_FOR_GPUS = "let pip find a CUDA build of torch (see: pip config list), then "
REINSTALL_FOR_GPUS += f"{'remove .venv and ' if IN_TREE else ''}run: {INSTALL_FOR_GPUS}"
REINSTALL = f"{INSTALL} (if it says up to date, remove .venv first)" if IN_TREE else INSTALL


@dataclass(frozen=True)
class Check:
    """What was looked at, what was found, whether that is good enough and, if not, what to do about it."""

    name: str
    found: str
    verdict: Verdict = "ok"
    mend: str = ""


def guarded(name: str, *, mend: str = REINSTALL) -> Callable[[Callable[[], Check]], Callable[[], Check]]:
    """Makes a check that raises, such as on an import that fails, a bad line with `mend` instead of a traceback."""

    def wrap(function: Callable[[], Check]) -> Callable[[], Check]:
        @functools.wraps(function)
        def check() -> Check:
            try:
                return function()
            except Exception as error:
                return Check(name, describe(error), "bad", mend)

        return check

    return wrap


def describe(error: BaseException) -> str:
    """An exception as one short line: its type and the first line of what it says."""
    lines = str(error).strip().splitlines()
    return f"{type(error).__name__}: {lines[0][:200]}" if lines else type(error).__name__


def gibibytes(num_bytes: float) -> str:
    """`12.3 GiB`, with fewer digits for large sizes and MiB for small ones."""
    if num_bytes < 2**30:
        return f"{num_bytes / 2**20:.0f} MiB"
    return f"{num_bytes / 2**30:.1f} GiB" if num_bytes < 100 * 2**30 else f"{num_bytes / 2**30:.0f} GiB"
