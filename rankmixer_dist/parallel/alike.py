"""What all ranks must begin with alike, and must see alike; who does not is named before anything is written."""

import json
import os
import socket
import time
import uuid
from collections import Counter
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist

from rankmixer_dist.checksum import text_checksum
from rankmixer_dist.errors import UserError
from rankmixer_dist.parallel.topology import Topology, all_gather_objects, broadcast_object, failing_together
from rankmixer_dist.there import is_there, matching

_TOKEN_PREFIX = ".seen-by-all-ranks-"
_FORGOTTEN_S = 600.0
"""Age of a token whose writer was killed."""
_PATIENCE_S = 10.0
"""For a network file system to show what another host has just written."""
_SHOWN = 100
"""Letters of a value that are told."""


def require_alike(record: Mapping[str, Any], topology: Topology) -> None:
    """Compares what every rank knows; all ranks call it. Of ranks that are alike, only a hash of 8 bytes is exchanged.

    Args:
        record: of values that JSON has; what explains other differences comes first, and the order of keys counts.

    Raises:
        UserError: on every rank, in the same words: a rank differs from most. Names it, its host and the first key.
    """
    checksum = text_checksum(json.dumps(record).encode())
    mine = int(checksum[:15], 16)
    extremes = torch.tensor([mine, -mine])
    dist.all_reduce(extremes, op=dist.ReduceOp.MAX)
    if extremes[0] == -extremes[1]:
        return
    known = all_gather_objects((checksum, socket.gethostname()))
    counts = Counter(checksum for checksum, _ in known)
    usual = max(counts, key=lambda each: (counts[each], each == known[0][0]))
    usual_rank = next(rank for rank, (each, _) in enumerate(known) if each == usual)
    odd_ranks = [rank for rank, (each, _) in enumerate(known) if each != usual]
    expected, found = (_record_of(rank, record, topology) for rank in (usual_rank, odd_ranks[0]))
    key, value, other = _first_difference(found, expected)
    more = f" ({len(odd_ranks) - 1} more ranks differ too)" if len(odd_ranks) > 1 else ""
    raise UserError(
        f"ranks differ: {key} is {_shown(value)} on rank {odd_ranks[0]}, host {known[odd_ranks[0]][1]}, and "
        f"{_shown(other)} on rank {usual_rank}, host {known[usual_rank][1]}{more}; start all ranks with the same "
        "config, prepared data and code"
    )


def require_shared(folder: Path, topology: Topology, *, key: str) -> None:
    """Makes sure that all ranks see in `folder` what rank 0 writes there; all ranks call it.

    On a full disk, where rank 0 cannot write, nothing can be said, and nothing is.

    Args:
        folder: is there, on rank 0.
        key: the config's key that names the folder.

    Raises:
        UserError: on every rank: the first that sees another folder, with its host.
    """
    if topology.world_size == 1:
        return
    here = socket.gethostname()
    name, first_host = broadcast_object((_write_token(folder), here) if topology.is_first else None)
    if name is None:
        return
    try:
        with failing_together():
            if not topology.is_first and not _sees(folder / name):
                raise UserError(
                    f"{key}: rank {topology.rank} on host {here} does not see in {folder.absolute()} what rank 0 on "
                    f"host {first_host} writes there; all ranks must share that folder"
                )
    finally:
        if topology.is_first:
            (folder / name).unlink(missing_ok=True)


def _write_token(folder: Path) -> str | None:
    """The name of a file that nobody else has made; None where none can be made."""
    name = f"{_TOKEN_PREFIX}{uuid.uuid4().hex}"
    try:
        for left in matching(folder, _TOKEN_PREFIX + "*"):
            if time.time() - left.stat().st_mtime > _FORGOTTEN_S:
                left.unlink()
        (folder / name).touch()
    except OSError:
        return None
    return name


def _sees(path: Path) -> bool:
    give_up = time.monotonic() + _PATIENCE_S
    while not is_there(path):
        if time.monotonic() > give_up:
            return False
        time.sleep(0.2)
        with suppress(OSError):
            os.listdir(path.parent)  # a network file system then asks its server anew
    return True


def _record_of(rank: int, record: Mapping[str, Any], topology: Topology) -> Any:
    holder = [record if topology.rank == rank else None]
    dist.broadcast_object_list(holder, src=rank)
    return holder[0]


def _first_difference(found: Any, expected: Any, key: str = "") -> tuple[str, Any, Any]:
    if isinstance(found, dict) and isinstance(expected, dict):
        for name in [*expected, *(name for name in found if name not in expected)]:
            if name not in found or name not in expected or json.dumps(found[name]) != json.dumps(expected[name]):
                inner = f"{key}.{name}" if key else name
                return _first_difference(found.get(name, "missing"), expected.get(name, "missing"), inner)
        return f"the order of {key or 'all'}", [*found], [*expected]
    return key, found, expected


def _shown(value: Any) -> str:
    text = json.dumps(value)
    return text if len(text) <= _SHOWN else f"{text[:_SHOWN]}..."
