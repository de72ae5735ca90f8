"""Trains as launch/train.py does, on a disk that is full from one step to another: no file may then grow."""

import resource
import sys
from pathlib import Path

from rankmixer_dist.command_line import run_verb
from rankmixer_dist.train.rank_counting import RankCounting
from rankmixer_dist.train.run_hooks import RunHooks
from rankmixer_dist.verbs import train


def main(arguments: list[str]) -> None:
    """Takes the first step on a full disk, the first after it, and the verb's arguments."""
    RankCounting.__init__.__kwdefaults__["gathered_rows"] = 0  # validation goes over the disk
    full, free, *rest = arguments
    hard = resource.getrlimit(resource.RLIMIT_FSIZE)[1]
    on_step, steps = RunHooks.on_step, []

    def counted(self: RunHooks, batch: object) -> None:
        steps.append(batch)
        limits = {int(full): 0, int(free): resource.RLIM_INFINITY}
        if len(steps) in limits:
            self._saver.wait()
            resource.setrlimit(resource.RLIMIT_FSIZE, (limits[len(steps)], hard))
        on_step(self, batch)

    RunHooks.on_step = counted
    train.main(rest)


if __name__ == "__main__":
    sys.path.insert(0, str(Path(__file__).parents[2]))
    run_verb(main)
