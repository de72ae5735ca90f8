"""Before a run begins: all ranks have the same code, libraries, config and prepared data."""

import platform
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from rankmixer_dist.checkpoint.about import ABOUT_NAME
from rankmixer_dist.checksum import file_checksum
from rankmixer_dist.config import RunConfig
from rankmixer_dist.identity import order_of
from rankmixer_dist.parallel.alike import require_alike
from rankmixer_dist.parallel.topology import Topology

_ROOT = Path(__file__).resolve().parents[2]
_CODE = ("rankmixer_dist", "data_pipeline", "launch")
_LIBRARIES = ("torch", "torchrec", "deepspeed", "fbgemm-gpu", "fbgemm-gpu-cpu", "numpy", "pyarrow")
_PLACES = (("runs",), ("data", "prepared"), ("source", "path"))
"""Keys of paths, which a host may call by another name: what lies there is compared instead."""


def require_same_start(config: RunConfig, topology: Topology, *, manifest: Path) -> None:
    """Compares all ranks before any of them writes; all ranks call it.

    Args:
        manifest: of the prepared data, as this rank sees it.

    Raises:
        UserError: on every rank: one differs; names it, its host, the first key that differs and both values.
    """
    if topology.world_size > 1:
        # What may be the cause of a difference comes first.
        record = {
            "device": topology.device.type,
            "versions": {"python": platform.python_version()} | {name: _version(name) for name in _LIBRARIES},
            "code": _code(),
            **_compared(config),
            "data.prepared": _checksum(manifest),
        }
        require_alike(record, topology)


def require_same_checkpoint(checkpoint: Path, topology: Topology) -> None:
    """Makes sure that a run starts from one checkpoint: each rank reads its own part of it; all ranks call it.

    Raises:
        UserError: on every rank: a host has another one under the same path, or none; names it.
    """
    require_alike({"train.start_from.run": _checksum(checkpoint / ABOUT_NAME)}, topology)


def _compared(config: RunConfig) -> dict[str, Any]:
    values = config.model_dump(mode="json")
    for *section, key in _PLACES:
        holder = values
        for name in section:
            holder = holder[name]
        del holder[key]
    # Mappings are equal in any order, but the rows and columns of the model lie in theirs.
    return values | {"order of keys": order_of(values["features"])}


def _version(library: str) -> str | None:
    try:
        return version(library)
    except PackageNotFoundError:
        return None


def _code() -> dict[str, str]:
    """Path of each source file -> checksum of its bytes."""
    paths = sorted(path for folder in _CODE for path in (_ROOT / folder).rglob("*.py"))
    return {str(path.relative_to(_ROOT)): _checksum(path) for path in paths}


def _checksum(path: Path) -> str:
    try:
        return file_checksum(path)
    except OSError as error:
        return f"{path}: {error.strerror}"
