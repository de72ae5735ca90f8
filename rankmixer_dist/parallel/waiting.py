"""What a process that does not move waits for in the network: the collective, its group, and peers that are silent."""

import socket
import struct
import sys
from contextlib import suppress
from pathlib import Path
from types import FrameType

import torch.distributed as dist

_ESTABLISHED = "01"
_MOST_RANKS = 8


def collective_waited_for() -> str | None:
    """`all_reduce over ranks 0, 1` for the collective that a thread of this process is in; None where there is none."""
    for innermost in sys._current_frames().values():
        name, group, frame = None, None, innermost
        inside: FrameType | None = frame
        while inside is not None:
            module = inside.f_globals.get("__name__")
            if module == "torch.distributed.distributed_c10d" and not inside.f_code.co_name.startswith("wrap"):
                name = inside.f_code.co_name
                found = inside.f_locals.get("group") or inside.f_locals.get("pg")
                group = found if isinstance(found, dist.ProcessGroup) else group
            inside = inside.f_back
        if name is not None:
            return f"{name} over {_named(group)}"
    return None


def silent_peers() -> list[str]:
    """Addresses to which this process has sent what they have not acknowledged so far: cut off, gone, or stopped."""
    mine = set()
    for descriptor in Path("/proc/self/fd").iterdir():
        with suppress(OSError):
            target = str(descriptor.readlink())
            if target.startswith("socket:["):
                mine.add(target[8:-1])
    found = []
    for table in ("tcp", "tcp6"):
        with suppress(OSError):
            for line in Path(f"/proc/self/net/{table}").read_text().splitlines()[1:]:
                _, _, remote, state, queues, _, _, _, _, inode, *_ = line.split()
                if state == _ESTABLISHED and inode in mine and int(queues.split(":")[0], 16) > 0:
                    found.append(_address(remote.split(":")[0]))
    return sorted(set(found))


def _named(group: dist.ProcessGroup | None) -> str:
    if group is None or group == dist.group.WORLD:
        return "all ranks"
    ranks = dist.get_process_group_ranks(group)
    if len(ranks) == dist.get_world_size():
        return "all ranks"
    more = ", ..." if len(ranks) > _MOST_RANKS else ""
    return f"ranks {', '.join(map(str, ranks[:_MOST_RANKS]))}{more}"


def _address(digits: str) -> str:
    """An address as the kernel writes it: words of four bytes, each in the machine's order."""
    words = [int(digits[at : at + 8], 16) for at in range(0, len(digits), 8)]
    packed = struct.pack(f"={len(words)}I", *words)
    if len(packed) == 4:
        return socket.inet_ntop(socket.AF_INET, packed)
    return socket.inet_ntop(socket.AF_INET6, packed).removeprefix("::ffff:")
