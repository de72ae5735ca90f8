"""Run on ranks: takes up checkpoints on other ranks, shows what was taken up, and trains on."""

import json
import shutil
import sys
from pathlib import Path

from rankmixer_dist.checkpoint.folder import checkpoints
from rankmixer_dist.checkpoint.storage import write_pieces
from rankmixer_dist.command_line import run_verb
from rankmixer_dist.config import RunConfig, load_config
from rankmixer_dist.parallel.topology import Topology, barrier, process_group
from rankmixer_dist.sparse.shard import table_pieces
from rankmixer_dist.train.build import build_engine, build_model, build_tables, expert_grid_of, spread_out, unknown_data
from rankmixer_dist.train.checkpoint import resume
from rankmixer_dist.train.routing import Routing
from rankmixer_dist.verbs import train


def show(config: RunConfig, topology: Topology) -> None:
    """Takes up a run's newest checkpoint and writes its tensors down again, from wherever they lie now."""
    share = topology.share_of(config.loader.batch_size)
    grid = expert_grid_of(config)
    model = build_model(config, unknown_data(config.features), grid=grid)
    tables, _ = build_tables(config, topology, rows_per_rank=share)
    spread_out(config, model, grid)
    moe = config.model.mixture
    routing = None if moe is None else Routing(model, moe, seed=config.seed, device=topology.device)
    engine = build_engine(config, model, topology, rows_per_rank=share)
    resume(checkpoints(config.run_dir)[-1], tables, engine, topology, routing)
    routed = [] if routing is None else routing.pieces()
    write_pieces([*table_pieces(tables), *engine.pieces(), *routed], config.run_dir / "taken_up")


def main(arguments: list[str]) -> None:
    """Takes a config file and a JSON list of [run to go on from, overrides]."""
    path, cases = arguments
    with process_group() as topology:
        for source, overrides in json.loads(cases):
            config = load_config(path, overrides)
            if topology.is_first:
                shutil.copytree(load_config(path, [f"name={source}"]).run_dir, config.run_dir)
                (config.run_dir / "config.yaml").unlink()  # it names the other run
            barrier()
            show(config, topology)
            train.run_on(config, topology)


if __name__ == "__main__":
    sys.path.insert(0, str(Path(__file__).parents[2]))
    run_verb(main)
