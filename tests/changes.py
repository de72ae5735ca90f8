"""Declarations of tests with a few values replaced."""

import copy
from collections.abc import Mapping
from typing import Any


def changed(declared: Mapping[str, Any], changes: Mapping[str, Any]) -> dict[str, Any]:
    """A copy with values replaced, by path: `features__length__transform` names declared["features"]["length"]..."""
    found = copy.deepcopy(dict(declared))
    for path, value in changes.items():
        *parents, last = path.split("__")
        place = found
        for parent in parents:
            place = place[parent]
        place[last] = value
    return found
