"""Run on ranks: trains a run with an evaluation beside training, and writes the scores of such a one down."""

import json
import sys
from pathlib import Path

from data_pipeline.reading import data_seen, open_prepared, open_split
from rankmixer_dist.checkpoint.folder import checkpoints
from rankmixer_dist.command_line import run_verb
from rankmixer_dist.config import RunConfig, load_config
from rankmixer_dist.parallel.topology import Topology, process_group
from rankmixer_dist.train.build import build_engine, build_model, build_tables, expert_grid_of, spread_out
from rankmixer_dist.train.checkpoint import resume
from rankmixer_dist.train.evaluate import open_model
from rankmixer_dist.train.scoring import score_split
from rankmixer_dist.verbs import train

PREDICTIONS, HELD = "beside_training", "held-{rank}.json"


def score_beside_training(config: RunConfig, topology: Topology) -> None:
    """The trainer's own tables and engine, at the last checkpoint, score as they do beside training.

    Beside the scores, the names and sizes of the parameters that a rank of evaluate.py holds.
    """
    ranks = {"rank": topology.rank, "world_size": topology.world_size}
    manifest = open_prepared(config, ["train", config.eval.split], **ranks)
    rows = open_split(
        config, manifest, config.eval.split, **ranks, batch_size=config.eval.batch_size, training=False,
        pin_memory=False,
    )  # fmt: skip
    share = topology.share_of(config.loader.batch_size)
    grid = expert_grid_of(config)
    model = build_model(config, data_seen(config, manifest), grid=grid)
    tables, _ = build_tables(config, topology, rows_per_rank=share)
    spread_out(config, model, grid)
    engine = build_engine(config, model, topology, rows_per_rank=share)
    resume(checkpoints(config.run_dir)[-1], tables, engine, topology)
    score_split(
        tables, engine.module, rows, tasks=tuple(config.features.tasks), predictions=config.run_dir / PREDICTIONS,
        topology=topology, scratch=config.run_dir / "rows.partial",
    )  # fmt: skip
    _, scored = open_model(config, topology, checkpoints(config.run_dir)[-1], rows_per_rank=share)
    held = {name: parameter.numel() for name, parameter in scored.named_parameters()}
    (config.run_dir / HELD.format(rank=topology.rank)).write_text(json.dumps(held))


def main(arguments: list[str]) -> None:
    """Takes a config file and overrides."""
    config = load_config(arguments[0], arguments[1:])
    with process_group() as topology:
        train.run_on(config, topology)
        score_beside_training(config, topology)


if __name__ == "__main__":
    sys.path.insert(0, str(Path(__file__).parents[2]))
    run_verb(main)
