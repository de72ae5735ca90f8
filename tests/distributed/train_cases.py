"""Run on ranks: trains several configs one after the other in one process group, through launch/train.py."""

import json
import sys
from pathlib import Path

from torch import Tensor

from rankmixer_dist.command_line import run_verb
from rankmixer_dist.config import load_config
from rankmixer_dist.layers.relu_router import ReLURouter
from rankmixer_dist.parallel.topology import process_group
from rankmixer_dist.verbs import train

NEAREST_GATE = "nearest_gate.json"


def main(arguments: list[str]) -> None:
    """Takes a config file and a JSON list of override lists."""
    path, cases = arguments
    nearest = watch_gates()
    with process_group() as topology:
        for overrides in json.loads(cases):
            config = load_config(path, overrides)
            nearest.clear()
            train.run_on(config, topology)
            if topology.is_first and nearest:
                (config.run_dir / NEAREST_GATE).write_text(json.dumps(min(nearest)))


def watch_gates() -> list[float]:
    """A list that grows by each router's logit nearest to 0, where its gate opens: rounding decides what is nearer."""
    nearest: list[float] = []
    logits = ReLURouter.logits

    def watched(router: ReLURouter, x_TBD: Tensor) -> Tensor:
        found = logits(router, x_TBD)
        if not found.is_meta:  # where FLOPs are counted
            nearest.append(float(found.detach().abs().min()))
        return found

    ReLURouter.logits = watched
    return nearest


if __name__ == "__main__":
    sys.path.insert(0, str(Path(__file__).parents[2]))
    run_verb(main)
