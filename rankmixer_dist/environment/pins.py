"""The versions that pyproject.toml pins, and those that are installed."""

from __future__ import annotations

import re
from importlib import metadata
from pathlib import Path

PYPROJECT = Path(__file__).resolve().parents[2] / "pyproject.toml"

_PIN = re.compile(r"^([A-Za-z0-9._-]+)(?:\[[^]]*\])?==([^;\s]+)")


def pinned() -> dict[str, str]:
    """Distribution name -> pinned version, extras included; of this source tree or else of the installed project."""
    if PYPROJECT.exists():
        import tomllib  # inside: Python 3.10 and older do not have it, and the doctor has to tell their users so

        project = tomllib.loads(PYPROJECT.read_text())["project"]
        groups = [project["dependencies"], *project["optional-dependencies"].values()]
        lines = [line for group in groups for line in group]
    else:
        lines = metadata.requires("rankmixer_dist") or []
    matches = [_PIN.match(line) for line in lines]
    return {match[1].lower(): match[2] for match in matches if match}


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
        return f"{found}, but pyproject.toml pins {wanted}"
    return None
