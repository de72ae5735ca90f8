"""Run as a process: joins two network namespaces by a link of a rate and a delay, which it keeps in user space.

A kernel's netem does the same, where there is one.
"""

import ctypes
import fcntl
import heapq
import os
import select
import struct
import subprocess
import sys
import time
from dataclasses import dataclass, field
from pathlib import Path

_TUNSETIFF, _IFF_TUN, _IFF_NO_PI, _CLONE_NEWNET = 0x400454CA, 0x0001, 0x1000, 0x40000000
_MTU = 9000
_MOST_WAITING_S = 1.0
"""Of what a sender has sent: the rest is dropped, as a full queue does."""


@dataclass
class Direction:
    """Packets on their way from one end to the other."""

    source: int
    target: int
    free_at: float = 0.0
    flying: list[tuple[float, int, bytes]] = field(default_factory=list)
    sent: int = 0

    def take(self, bytes_per_s: float, delay_s: float) -> None:
        """Takes a packet, which leaves once those before it have left."""
        packet = os.read(self.source, 65536)
        now = time.monotonic()
        if self.free_at - now > _MOST_WAITING_S:
            return
        self.free_at = max(self.free_at, now) + len(packet) / bytes_per_s
        self.sent += 1
        heapq.heappush(self.flying, (self.free_at + delay_s, self.sent, packet))

    def deliver(self) -> float:
        """Hands over what has come; the time until the next, or a second."""
        while self.flying and self.flying[0][0] <= time.monotonic():
            os.write(self.target, heapq.heappop(self.flying)[2])
        return self.flying[0][0] - time.monotonic() if self.flying else 1.0


def end(space: str, name: str, address: str) -> int:
    """A device in a namespace: what is sent there is read from the file that is returned."""
    with Path("/run/netns", space).open() as namespace:
        if ctypes.CDLL(None, use_errno=True).setns(namespace.fileno(), _CLONE_NEWNET):
            raise OSError(ctypes.get_errno(), f"cannot enter {space}")
    file = os.open("/dev/net/tun", os.O_RDWR | os.O_NONBLOCK)
    fcntl.ioctl(file, _TUNSETIFF, struct.pack("16sH22s", name.encode(), _IFF_TUN | _IFF_NO_PI, b""))
    subprocess.run(["ip", "address", "add", f"{address}/24", "dev", name], check=True)
    subprocess.run(["ip", "link", "set", name, "mtu", str(_MTU), "up"], check=True)
    return file


def main(name: str, mbit_s: float, delay_ms: float, *ends: str) -> None:
    """`ends`: two of `namespace=address`. Says `ready` once the link is there."""
    first, second = (end(space, name, address) for space, address in (one.split("=") for one in ends))
    ways = [Direction(first, second), Direction(second, first)]
    print("ready", flush=True)
    while True:
        wait = min(way.deliver() for way in ways)
        for file in select.select([first, second], [], [], max(0.0, wait))[0]:
            ways[file == second].take(mbit_s * 1e6 / 8, delay_ms / 1e3)


if __name__ == "__main__":
    main(sys.argv[1], float(sys.argv[2]), float(sys.argv[3]), *sys.argv[4:])
