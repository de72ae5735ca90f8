"""Run by a launcher on ranks: the same steps with and without look-ahead in turn, their losses and what they cost.

Takes a config file, the number of rounds, of steps, and overrides. The first rank prints a line of JSON.
"""

import json
import sys
import time
from itertools import islice
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[2]))

import torch

from data_pipeline.reading import data_seen, find_prepared, open_training
from rankmixer_dist.batch import Batch, Position
from rankmixer_dist.command_line import run_verb
from rankmixer_dist.config import RunConfig, load_config
from rankmixer_dist.parallel.topology import Topology, barrier, process_group, sum_over_ranks
from rankmixer_dist.train.build import build_engine, build_model, build_tables
from rankmixer_dist.train.memory import keep_freed_memory
from rankmixer_dist.train.step import LearningRates, TrainStep
from rankmixer_dist.train.stopwatch import Stopwatch

WARM_UP = 5


def trained(config: RunConfig, topology: Topology, batches: list[Batch], *, look_ahead: bool) -> dict[str, Any]:
    """Of steps on all batches from the same beginning: losses, and wall and CPU seconds of those after the warm-up."""
    model = build_model(config, data_seen(config, find_prepared(config, ["train"])))
    rows = config.loader.batch_size // topology.world_size
    tables, _ = build_tables(config, topology, rows_per_rank=rows)
    step = TrainStep(
        tables,
        build_engine(config, model, topology, rows_per_rank=rows),
        task_weights_K=torch.ones(len(config.features.tasks)),
        auxiliary_weight=0.0,
        world_size=topology.world_size,
        stopwatch=Stopwatch(topology.device),
        look_ahead=look_ahead,
    )
    rates = LearningRates(config.dense.lr, config.sparse.lr)
    results = step.run(iter(batches), first=1, rates=lambda number: rates)
    losses = [result.losses_K for result in islice(results, WARM_UP)]
    barrier()
    wall, cpu = time.perf_counter(), time.process_time()
    losses += [result.losses_K for result in results]
    barrier()
    wall, cpu = time.perf_counter() - wall, time.process_time() - cpu
    return {"losses": sum_over_ranks(torch.stack(losses)).tolist(), "wall_s": wall, "cpu_s": cpu}


def main(arguments: list[str]) -> None:
    """Takes a config file, the number of rounds, of steps, and overrides."""
    path, rounds, steps, *overrides = arguments
    config = load_config(path, overrides)
    with process_group() as topology:
        keep_freed_memory(topology.device)
        manifest = find_prepared(config, ["train"])
        reading = open_training(
            config, manifest, rank=topology.rank, world_size=topology.world_size, pin_memory=False
        ).epoch(Position(0, 0))
        batches = [batch for batch, _ in islice(reading, int(steps))]
        reading.close()
        found: dict[str, list[dict[str, Any]]] = {"ahead": [], "behind": []}
        for _ in range(int(rounds)):
            for name, of_way in found.items():
                of_way.append(trained(config, topology, batches, look_ahead=name == "ahead"))
        if topology.is_first:
            rows = (len(batches) - WARM_UP) * config.loader.batch_size
            print(json.dumps(found | {"rows": rows}), flush=True)


if __name__ == "__main__":
    run_verb(main)
