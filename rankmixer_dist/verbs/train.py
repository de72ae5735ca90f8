"""Trains a run: tables over all ranks, the dense model under DeepSpeed, from prepared data."""

from typing import TYPE_CHECKING

from rankmixer_dist.command_line import config_parser, parse_config
from rankmixer_dist.config import RunConfig
from rankmixer_dist.imports import large_imports

if TYPE_CHECKING:
    from data_pipeline.manifest import Manifest
    from rankmixer_dist.parallel.topology import Topology

USAGE = """\
python launch/train.py configs/quickstart.yaml dense.lr=0.002
python launch/torchrun.py --nproc_per_node 2 launch/train.py configs/quickstart.yaml
DS_ACCELERATOR=cpu deepspeed --num_gpus 2 launch/train.py configs/quickstart.yaml
srun --ntasks-per-node 8 python launch/train.py configs/quickstart.yaml   (with MASTER_ADDR and MASTER_PORT set)

The run directory runs/<name>/ gets config.yaml, plan.json, metrics.jsonl, tensorboard/ and checkpoints/. Started again
with the same config, on any number of ranks, a run goes on from its newest checkpoint. SIGTERM and SIGUSR1 end it after
the step, saved, with exit code 75: start it again to go on.
"""


def main(arguments: list[str]) -> None:
    """Parses the command line and trains."""
    run(parse_config(config_parser("train", __doc__, USAGE), arguments))


def run(config: RunConfig) -> None:
    """Joins the ranks and trains."""
    manifest = check(config)
    # Imported after all else is known to be good: torch and its kin take seconds.
    with large_imports():
        from rankmixer_dist.parallel.topology import process_group
        from rankmixer_dist.parallel.watchdog import exchange_limit_s
        from rankmixer_dist.train.determinism import take_deterministic_ways

    if config.train.deterministic:
        take_deterministic_ways()
    with process_group(timeout_s=exchange_limit_s(config.train.stall_timeout_s)) as topology:
        run_on(config, topology, manifest)


def check(config: RunConfig) -> "Manifest":
    """Finds the mistakes that the config, the folders and the manifest alone can tell, without torch."""
    from data_pipeline.reading import data_seen, find_prepared
    from rankmixer_dist.checkpoint.folder import checkpoints
    from rankmixer_dist.small_file import require_file_or_none, require_place
    from rankmixer_dist.train.beginning import beginning, start_checkpoint
    from rankmixer_dist.train.run_dir import check_run_dir, in_runs_order

    for folder in ("", "checkpoints", "tensorboard"):
        require_place(config.run_dir / folder, "runs")
    for name in ("lock", "metrics.jsonl"):
        require_file_or_none(config.run_dir / name)
    check_run_dir(config)
    saved = checkpoints(config.run_dir)
    others = start_checkpoint(config, saved)
    manifest = find_prepared(config, _splits(config))
    beginning(in_runs_order(config), saved, others, data_seen(config, manifest))
    return manifest


def _splits(config: RunConfig) -> list[str]:
    best = config.checkpoint.best
    return [*config.train.splits, *([best.split] if best else [])]


def run_on(config: RunConfig, topology: "Topology", manifest: "Manifest | None" = None) -> None:
    """Opens this rank's share of the data and trains.

    Args:
        manifest: of the data, where it has been read.
    """
    with large_imports():
        from data_pipeline.manifest import MANIFEST_NAME
        from data_pipeline.reading import data_seen, open_prepared, open_split, open_training
        from data_pipeline.row_order import told_of_shared
        from rankmixer_dist.parallel.topology import failing_together
        from rankmixer_dist.train.run import train
        from rankmixer_dist.train.run_dir import in_runs_order
        from rankmixer_dist.train.same_start import require_same_start

    config = in_runs_order(config)
    require_same_start(config, topology, manifest=config.data.prepared / MANIFEST_NAME)
    topology.share_of(config.loader.batch_size)
    ranks = {"rank": topology.rank, "world_size": topology.world_size}
    best = config.checkpoint.best
    with failing_together():
        manifest = open_prepared(config, _splits(config), **ranks, manifest=manifest)
    assert manifest is not None
    told = told_of_shared(
        batch_size=config.loader.batch_size, lanes=config.loader.interleave, ranks=topology.world_size,
        row_group_rows=manifest.row_group_rows,
    )  # fmt: skip
    if topology.is_first and told is not None:
        print(f"note: {told}", flush=True)
    pin_memory = topology.device.type == "cuda"
    rows = open_training(config, manifest, **ranks, pin_memory=pin_memory)
    validation_rows = None
    if best is not None:
        topology.share_of(config.eval.batch_size)
        batch_size = config.eval.batch_size
        validation_rows = open_split(
            config, manifest, best.split, **ranks, batch_size=batch_size, training=False, pin_memory=pin_memory
        )
    train(
        config, topology, rows, data=data_seen(config, manifest), validation_rows=validation_rows,
        ids_per_row=manifest.ids_of_rows(shared=config.loader.share),
        events_per_row=manifest.ids_of_rows(shared=False),
    )  # fmt: skip
