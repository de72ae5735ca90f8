"""How far each rank is, told to the others through small files.

Files, and not the process group's store: the store lives in one process, and that one may be the rank that is stopped.
"""

import json
import os
import time
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class Heartbeat:
    """What a rank is doing and since when.

    `turn`: which beat of its step it is, so that `(step, turn)` orders ranks that go through the same beats;
    `began_at`: seconds since the epoch; `silent_s`: for how long its process has given no sign of life.
    """

    rank: int
    step: int
    turn: int
    doing: str
    began_at: float
    silent_s: float = 0.0

    def is_behind(self, other: "Heartbeat") -> bool:
        """True if this rank has still to come to where `other` is."""
        return (self.step, self.turn) < (other.step, other.turn)


class HeartbeatFiles:
    """One file a rank in a folder that all ranks share, whose hosts' clocks agree to a second or so.

    Where the folder is not shared, the others' beats are just not known.
    """

    def __init__(self, folder: Path, *, rank: int, world_size: int) -> None:
        self._folder, self._rank, self._world_size = folder, rank, world_size
        self._began_at = time.time()

    def write(self, own: Heartbeat) -> None:
        """Says that this rank's process lives and what it is doing."""
        self._folder.mkdir(parents=True, exist_ok=True)
        beat = {"step": own.step, "turn": own.turn, "doing": own.doing, "began_at": own.began_at}
        aside = self._path(self._rank).with_suffix(".new")
        aside.write_text(json.dumps(beat | {"seen_at": time.time()}))
        os.replace(aside, self._path(self._rank))

    def read_others(self) -> list[Heartbeat]:
        """The other ranks' beats, those that an earlier run left behind aside."""
        found = []
        for rank in range(self._world_size):
            if rank == self._rank:
                continue
            try:
                beat = json.loads(self._path(rank).read_text())
            except FileNotFoundError:
                continue
            seen_at = beat.pop("seen_at")
            if seen_at >= self._began_at:
                found.append(Heartbeat(rank, **beat, silent_s=time.time() - seen_at))
        return found

    def remove_own(self) -> None:
        """Forgets this rank, which has nothing to report any more."""
        self._path(self._rank).unlink(missing_ok=True)

    def _path(self, rank: int) -> Path:
        return self._folder / f"rank-{rank}.beat"
