"""The versions that the project is tested with, and those that are installed."""

from __future__ import annotations

from importlib import metadata
from pathlib import Path

CONSTRAINTS = Path(__file__).with_name("constraints.txt")


def pinned() -> dict[str, str]:
    """Distribution name -> the version that is tested, those of the extras included."""
    lines = CONSTRAINTS.read_text(encoding="utf-8").splitlines()
    return dict(line.split("==", maxsplit=1) for line in lines if "==" in line)


def installed(distribution: str) -> str | None:
    """The installed version of a distribution, such as `2.13.0+cpu`, or None."""
    try:
        return metadata.version(distribution)
    except metadata.PackageNotFoundError:
        return None


def disagreement(distribution: str) -> str | None:
    """What is wrong with the installed version, in words, or None; `+cpu` and other local parts are not compared."""
    wanted, found = pinned().get(distribution), installed(distribution)
    if found is None:
        return "not installed"
    if wanted is not None and found.partition("+")[0] != wanted:
        return f"{found}, but tested with {wanted}"
    return None
