"""A training step of both halves against a plain TorchRec loop of the same sizes, in the same processes, in turn."""

import json
import os
import socket
import statistics
import tempfile
import time
from collections.abc import Callable, Mapping
from pathlib import Path

import torch
from torch.multiprocessing import start_processes

from rankmixer_dist.batch import Batch, JaggedIds
from rankmixer_dist.benchmarks.figure import Figure
from rankmixer_dist.benchmarks.step_peer import PeerBatch, PeerLoop
from rankmixer_dist.config import RunConfig
from rankmixer_dist.parallel.topology import Topology, barrier, gather_objects, process_group
from rankmixer_dist.train.build import build_engine, build_model, build_tables, unknown_data
from rankmixer_dist.train.step import LearningRates, TrainStep
from rankmixer_dist.train.stopwatch import Stopwatch

BACKBONES = ("dlrm_mlp", "dcn_v2")
RANKS = (1, 2)
REPEATS = 7
AGAINST = "TorchRec's own loop: TrainPipelineSparseDist, DDP, Adam, the same fused optimizer"


def measure(
    config: RunConfig, *, tables: int, table_rows: int, dim: int, numerics: int, rows: int, steps: int
) -> list[Figure]:
    """CPU seconds a million rows, of all ranks together, and rows a second.

    Args:
        config: of its optimizers; features, model and batch are those of the sizes.
        tables: features, each with one id a row and a table of its own.
        rows: B of a rank.
        steps: of a round; the two loops take turns.
    """
    figures = []
    for backbone in BACKBONES:
        for ranks in RANKS:
            own = config_of(
                config, backbone, tables=tables, table_rows=table_rows, dim=dim, numerics=numerics, rows=rows * ranks
            )
            taken = _on_ranks(ranks, own, steps)
            seen = steps * rows * ranks
            cpu, wall = (
                {name: statistics.median(times[part]) for name, times in taken.items()} for part in ("cpu", "wall")
            )
            name = f"{backbone}, {ranks} rank{'s' * (ranks > 1)}"
            figures.append(
                Figure(f"CPU, {name}", cpu["ours"] / seen * 1e6, "s a million rows", cpu["peer"] / seen * 1e6, AGAINST)
            )
            figures.append(Figure(f"speed, {name}", seen / wall["ours"], "rows/s", seen / wall["peer"], AGAINST))
    return figures


def config_of(
    base: RunConfig, backbone: str, *, tables: int, table_rows: int, dim: int, numerics: int, rows: int
) -> RunConfig:
    """A run on `rows` rows a step of that many tables, each token one feature, and the numerics one token more."""
    ids = {f"id{n}": {"kind": "id", "table": f"table{n}", "group": f"group{n}"} for n in range(tables)}
    numbers = {f"number{n}": {"kind": "numeric", "group": "numbers"} for n in range(numerics)}
    features = {
        "tables": {f"table{n}": {"rows": table_rows, "dim": dim, "ids": "identity"} for n in range(tables)},
        "groups": {f"group{n}": 1 for n in range(tables)} | {"numbers": 1},
        "features": ids | numbers,
        "tasks": {"click": {}},
    }
    given = base.model_dump(mode="json")
    given |= {"features": features, "model": {"backbone": backbone, "token_dim": dim}}
    given["loader"]["batch_size"] = rows
    return RunConfig.model_validate(given)


def _on_ranks(ranks: int, config: RunConfig, steps: int) -> dict[str, dict[str, list[float]]]:
    """Each loop's `cpu` and `wall` seconds of each round, in processes of their own."""
    with socket.socket() as free, tempfile.TemporaryDirectory() as folder:
        free.bind(("127.0.0.1", 0))
        port, out = free.getsockname()[1], Path(folder) / "taken.json"
        free.close()
        start_processes(_rank, args=(ranks, port, config, steps, out), nprocs=ranks, start_method="spawn")
        return json.loads(out.read_text())


def _rank(rank: int, ranks: int, port: int, config: RunConfig, steps: int, out: Path) -> None:
    os.environ |= {"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": str(ranks), "LOCAL_WORLD_SIZE": str(ranks)}
    os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    with process_group() as topology:
        taken = _taken(_loops(config, topology, steps), topology)
        if taken is not None:
            out.write_text(json.dumps(taken))


def _loops(config: RunConfig, topology: Topology, steps: int) -> dict[str, Callable[[], object]]:
    """A round of each loop over the same rows."""
    share = topology.share_of(config.loader.batch_size)
    batches = [_batch(config, share, seed=step * topology.world_size + topology.rank) for step in range(steps)]
    of_peer = [PeerBatch.of(batch) for batch in batches]
    peer = PeerLoop(config)
    model = build_model(config, unknown_data(config.features))
    tables, _ = build_tables(config, topology, rows_per_rank=share, saves=True)
    engine = build_engine(config, model, topology, rows_per_rank=share)
    step = TrainStep(
        tables,
        engine,
        task_weights_K=torch.ones(1),
        auxiliary_weight=0.0,
        world_size=topology.world_size,
        stopwatch=Stopwatch(topology.device),
        look_ahead=config.sparse.look_ahead,
    )
    rates = LearningRates(config.dense.lr, config.sparse.lr)

    def ours() -> None:
        for _ in step.run(iter(batches), first=1, rates=lambda number: rates):
            pass

    return {"ours": ours, "peer": lambda: peer.train(iter(of_peer))}


def _taken(loops: Mapping[str, Callable[[], object]], topology: Topology) -> dict[str, dict[str, list[float]]] | None:
    """On rank 0, for each loop and round, the CPU seconds of all ranks together and the seconds of the clock."""
    found: dict[str, dict[str, list[float]]] = {name: {"cpu": [], "wall": []} for name in loops}
    for repeat in range(REPEATS + 1):
        for name, run in loops.items():
            barrier()
            cpu, wall = time.process_time(), time.perf_counter()
            run()
            mine = time.process_time() - cpu
            barrier()
            if repeat:
                found[name]["cpu"].append(mine)
                found[name]["wall"].append(time.perf_counter() - wall)
    parts = gather_objects(found)
    if parts is None:
        return None
    for name in found:
        found[name]["cpu"] = [sum(times) for times in zip(*(part[name]["cpu"] for part in parts), strict=True)]
    return found


def _batch(config: RunConfig, rows: int, *, seed: int) -> Batch:
    """Random rows: few ids are frequent, as in logs."""
    random = torch.Generator().manual_seed(seed)
    schema = config.features
    names = schema.id_features()
    most = next(iter(schema.tables.values())).rows
    values = 1 + (torch.rand(len(names) * rows, generator=random) ** 4 * (most - 1)).long()
    lengths_FB = torch.ones(len(names), rows, dtype=torch.int32)
    numerics = len(schema.features) - len(names)
    nobody = torch.zeros(rows, dtype=torch.int64)
    return Batch(
        row_id_B=nobody,
        user_id_B=nobody,
        timestamp_B=nobody,
        weight_B=torch.ones(rows),
        labels_BK=torch.randint(2, (rows, 1), generator=random).float(),
        numerics_BN=torch.randn(rows, numerics, generator=random),
        ids=JaggedIds.on_host(names, values.clamp(max=most - 1), lengths_FB),
        global_weight=float(config.loader.batch_size),
    )
