"""Run on ranks: trains configs and evaluates configs, one after the other in one process group."""

import json
import sys
from pathlib import Path

from data_pipeline.reading import open_prepared, open_split
from rankmixer_dist.command_line import run_verb
from rankmixer_dist.config import RunConfig, load_config
from rankmixer_dist.parallel.topology import Topology, process_group
from rankmixer_dist.train.evaluate import evaluate
from rankmixer_dist.verbs import train


def score(config: RunConfig, topology: Topology) -> None:
    """As launch/evaluate.py does, without the report."""
    ranks = {"rank": topology.rank, "world_size": topology.world_size}
    manifest = open_prepared(config, [config.eval.split], **ranks)
    rows = open_split(
        config,
        manifest,
        config.eval.split,
        **ranks,
        batch_size=config.eval.batch_size,
        training=False,
        pin_memory=False,
    )
    evaluate(config, topology, rows)


def main(arguments: list[str]) -> None:
    """Takes a config file and JSON lists of override lists: to be trained, and to be evaluated."""
    path, trained, evaluated = arguments
    with process_group() as topology:
        for overrides in json.loads(trained):
            train.run_on(load_config(path, overrides), topology)
        for overrides in json.loads(evaluated):
            score(load_config(path, overrides), topology)


if __name__ == "__main__":
    sys.path.insert(0, str(Path(__file__).parents[2]))
    run_verb(main)
