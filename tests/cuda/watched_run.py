"""Run by torchrun: trains, and writes down where each rank waited for its GPU and on which GPUs it has a context."""

import ctypes
import json
from collections import Counter
from pathlib import Path
from typing import Any

import torch

from rankmixer_dist.command_line import run_verb
from rankmixer_dist.config import RunConfig, load_config
from rankmixer_dist.parallel.topology import Topology, process_group
from rankmixer_dist.train.step import TrainStep
from rankmixer_dist.verbs import train
from tests.cuda.contexts import active_contexts
from tests.cuda.waits import waits

WARM_UP = 3
"""Steps that are not watched: first calls load kernels and reserve memory."""


def main(arguments: list[str]) -> None:
    """Takes a config file, a folder for the findings and overrides."""
    path, folder, *overrides = arguments
    with process_group() as topology:
        found = watched(load_config(path, overrides), topology)
        Path(folder, f"rank-{topology.rank}.json").write_text(json.dumps(found))


def watched(config: RunConfig, topology: Topology) -> dict[str, Any]:
    """What a run did, on this rank: `waits` by place in all steps after the warm-up, `steps`, `contexts`, `device`."""
    take = TrainStep.take
    found: Counter[str] = Counter()
    steps = 0

    def step(self: TrainStep, *args: Any, **kwargs: Any) -> Any:
        nonlocal steps
        steps += 1
        if steps <= WARM_UP:
            return take(self, *args, **kwargs)
        with waits() as here:
            result = take(self, *args, **kwargs)
        found.update(here)
        return result

    TrainStep.take = step  # type: ignore[method-assign]
    try:
        train.run_on(config, topology)
    finally:
        TrainStep.take = take  # type: ignore[method-assign]
    on_gpu = topology.device.type == "cuda"
    contexts = active_contexts(ctypes.CDLL("libcuda.so.1"), torch.cuda.device_count()) if on_gpu else []
    return {"waits": found, "steps": steps - WARM_UP, "contexts": contexts, "device": str(topology.device)}


if __name__ == "__main__":
    run_verb(main)
