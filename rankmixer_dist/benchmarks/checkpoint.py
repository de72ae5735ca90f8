"""How long training waits for a checkpoint: written beside it, against written while it stands."""

import statistics
import tempfile
import time
from pathlib import Path

from rankmixer_dist.batch import Position
from rankmixer_dist.benchmarks.device import wait_for
from rankmixer_dist.benchmarks.figure import Figure
from rankmixer_dist.checkpoint.saver import Saver
from rankmixer_dist.config import RunConfig
from rankmixer_dist.parallel.topology import Topology, process_group
from rankmixer_dist.train.build import build_engine, build_model, build_tables, unknown_data
from rankmixer_dist.train.checkpoint import describe, state_pieces
from rankmixer_dist.train.loop import Progress
from rankmixer_dist.train.memory import keep_freed_memory

REPEATS = 5
_MOMENTS = ("exp_avg", "exp_avg_sq")


def measure(config: RunConfig) -> list[Figure]:
    """The state of the config's run, Adam moments and table accumulators included, saved both ways in turn."""
    with process_group() as topology, tempfile.TemporaryDirectory(dir=".") as folder:
        keep_freed_memory(topology.device)
        return _measure(config, topology, Path(folder))


def _measure(config: RunConfig, topology: Topology, folder: Path) -> list[Figure]:
    rows = config.loader.batch_size
    model = build_model(config, unknown_data(config.features))
    tables, _ = build_tables(config, topology, rows_per_rank=rows)
    engine = build_engine(config, model, topology, rows_per_rank=rows)
    engine.make_room(_MOMENTS, 1)
    gigabytes = sum(p.tensor.numel() * p.tensor.element_size() for p in state_pieces(tables, engine, topology)) / 1e9

    stalls: dict[bool, list[float]] = {True: [], False: []}
    savers = {beside: Saver(folder / str(beside), topology, keep=1, asynchronous=beside) for beside in (True, False)}
    for step in range(1, REPEATS + 2):
        for beside, saver in savers.items():
            progress = Progress(step=step, rows=step, position=Position(0, step))
            about, pieces = describe(config, progress, engine, topology, {}), state_pieces(tables, engine, topology)
            wait_for(topology.device)
            start = time.perf_counter()
            saver.save(about, pieces)
            wait_for(topology.device)
            stalls[beside].append(time.perf_counter() - start)
            saver.finish()
    # The first save beside training also allocates the copy that the others reuse.
    what = f"of {gigabytes:.2f} GB"
    against = f"the same, waiting until it is on disk, median of {REPEATS}"
    usual = statistics.median(stalls[False][1:])
    return [
        Figure(f"wait for a checkpoint {what}, median", statistics.median(stalls[True][1:]), "s", usual, against),
        Figure(f"wait for a run's first checkpoint {what}", stalls[True][0], "s", usual, against),
    ]
