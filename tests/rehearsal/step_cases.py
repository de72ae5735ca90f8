"""Run as a process: trains and scores configs on the stand-in device, as one rank of many, through the real code.

Takes a JSON list of cases, which `test_step.case` makes; prints a line of JSON a case, of two steps or of a shard.
"""

import dataclasses
import json
import os
import sys
import tempfile
import time
import traceback
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[2]))

from tests.rehearsal import ranks, sharding, stand_in
from tests.rehearsal.mutations import MUTATIONS

DEVICE = stand_in.register()
ranks.accelerate()

import torch  # noqa: E402
from torch._subclasses.fake_tensor import unset_fake_temporarily  # noqa: E402

from data_pipeline.assemble import BatchAssembler  # noqa: E402
from data_pipeline.streaming import scoring as streaming  # noqa: E402
from rankmixer_dist.batch import Batch, JaggedIds, Position  # noqa: E402
from rankmixer_dist.checksum import file_checksum  # noqa: E402
from rankmixer_dist.config import RunConfig, load_config  # noqa: E402
from rankmixer_dist.metrics import Window  # noqa: E402
from rankmixer_dist.parallel import topology as topologies  # noqa: E402
from rankmixer_dist.parallel.topology import Topology  # noqa: E402
from rankmixer_dist.schema import NumericFeature  # noqa: E402
from rankmixer_dist.sparse.shard import LocalTables, RowWiseAdagradSettings, Tables, init_tables  # noqa: E402
from rankmixer_dist.sparse.tables import EmbeddingTables  # noqa: E402
from rankmixer_dist.train import build, evaluate, scorer  # noqa: E402
from rankmixer_dist.train.loop import Plan, Progress, run_loop  # noqa: E402
from rankmixer_dist.train.loss_range import LossRange  # noqa: E402
from rankmixer_dist.train.non_finite import NonFiniteRows  # noqa: E402
from rankmixer_dist.train.paths import path_gap  # noqa: E402
from rankmixer_dist.train.routing import Routing  # noqa: E402
from rankmixer_dist.train.scoring import score_split  # noqa: E402
from rankmixer_dist.train.step import TrainStep  # noqa: E402
from rankmixer_dist.train.stopwatch import Stopwatch  # noqa: E402

ROWS, STEPS, STREAMED_ROWS = 32, 2, 512


class Rows:
    """Batches without values, an id a feature and row."""

    def __init__(self, config: RunConfig, steps: int) -> None:
        self._schema, self._steps, self.rows = config.features, steps, ROWS * steps

    def epoch(self, position: Position) -> Iterator[tuple[Batch, Position]]:
        for step in range(position.row, self._steps):
            yield self.batch(), Position(position.epoch, step + 1)

    def batch(self) -> Batch:
        names, tasks = self._schema.id_features(), len(self._schema.tasks)
        one_B = torch.ones(ROWS, dtype=torch.int64)
        lengths_FB = torch.ones(len(names), ROWS, dtype=torch.int32)
        return Batch(
            row_id_B=one_B,
            user_id_B=one_B,
            timestamp_B=one_B,
            weight_B=torch.ones(ROWS),
            labels_BK=torch.zeros(ROWS, tasks),
            numerics_BN=torch.zeros(ROWS, len(self._schema.of_kind(NumericFeature))),
            ids=JaggedIds(names, torch.zeros(ROWS * len(names), dtype=torch.int64), lengths_FB, (ROWS,) * len(names)),
            global_weight=float(ROWS),
        )


class Quiet:
    """The hooks of a run that logs and saves nothing."""

    def doing(self, step: int, what: str) -> None: ...
    def on_step(self, batch: Batch) -> None: ...
    def on_log(self, line: dict[str, Any]) -> None: ...
    def on_checkpoint(self, progress: Progress) -> None: ...

    def stops(self) -> bool:
        return False


def tables_of(config: RunConfig, topology: Topology, sharded: bool) -> Tables:
    """This rank's part of the tables, or all of them."""
    if sharded:
        tables, _ = build.build_tables(config, topology, rows_per_rank=ROWS)
        tables(Rows(config, 1).batch().to(DEVICE).ids)  # at the first lookup TorchRec makes what it keeps
        return tables
    settings = RowWiseAdagradSettings(lr=config.sparse.lr, eps=config.sparse.eps)
    whole = LocalTables(EmbeddingTables(config.features, device=DEVICE), settings=settings)
    init_tables(whole, scale=config.sparse.init_scale, seed=config.seed)
    return whole


def rehearse(config: RunConfig, topology: Topology, census: Any, *, sharded: bool) -> dict[str, Any]:
    """What the census counts in the loop, and in scoring, of what `train.run` builds."""
    grid = build.expert_grid_of(config)
    model = build.build_model(config, build.unknown_data(config.features), grid=grid)
    build.spread_out(config, model, grid)
    tables = tables_of(config, topology, sharded)
    moe = config.model.mixture
    routing = None if moe is None else Routing(model, moe, seed=config.seed, device=DEVICE)
    engine = build.build_engine(config, model, topology, rows_per_rank=ROWS)
    weights = tuple(task.weight for task in config.features.tasks.values())
    plan = Plan(
        epochs=1,
        total_steps=STEPS,
        log_every=2 * STEPS,
        checkpoint_every=None,
        checkpoint_epochs=False,
        lr=build.learning_rate(config.dense.lr, config.dense.schedule, total_steps=STEPS),
        sparse_lr=build.learning_rate(config.sparse.lr, config.sparse.schedule, total_steps=STEPS),
        tasks=tuple(config.features.tasks),
        task_weights=weights,
        flops_per_row=1,
        peak=SimpleNamespace(share=lambda rate: rate),
    )
    stopwatch = Stopwatch(DEVICE)
    step = TrainStep(
        tables,
        engine,
        task_weights_K=torch.tensor(weights, device=DEVICE),
        auxiliary_weight=build.auxiliary_weight(config.model),
        world_size=topology.world_size,
        stopwatch=stopwatch,
        routing=routing,
        skip_non_finite=config.train.on_non_finite == "skip",
        look_ahead=config.sparse.look_ahead,
    )
    census.start()
    run_loop(
        Rows(config, STEPS),
        step,
        plan,
        progress=Progress(step=0, rows=0, position=Position(0, 0)),
        topology=topology,
        stopwatch=stopwatch,
        non_finite=NonFiniteRows(Path(tempfile.gettempdir()) / "no run", topology, resume_step=0),
        loss_range=LossRange(plan.tasks, [0.5] * len(weights), speaks=False),
        hooks=Quiet(),
    )
    found = {"step": census.take()}
    pieces = engine.pieces()
    assert pieces and engine.moments()
    assert {piece.tensor.device for piece in pieces} == {DEVICE}
    assert {piece.tensor.dtype for piece in pieces} == {torch.float32}
    engine.refresh()
    tasks, weights_K = tuple(config.features.tasks), torch.tensor(weights, device=DEVICE)
    census.start()
    score_split(
        tables,
        model,
        Rows(config, 1),
        tasks=tasks,
        predictions=None,
        topology=topology,
        scratch=Path(tempfile.gettempdir()) / "no rows",
    )
    path_gap(tables, model, Rows(config, 1).batch().to(DEVICE), weights_K)
    return found | {"scoring": census.take()}


class ShapesOfBatches(BatchAssembler):
    """A shard's batches, which lose their values."""

    def __call__(self, *args: Any, **kwargs: Any) -> Batch:
        with unset_fake_temporarily() as mode:
            batch = super().__call__(*args, **kwargs)
        shape_of = {id(tensor): mode.from_tensor(tensor) for tensor in batch.tensors()}
        ids = dataclasses.replace(
            batch.ids, values=shape_of[id(batch.ids.values)], lengths_FB=shape_of[id(batch.ids.lengths_FB)]
        )
        shapes = {name: shape_of[id(value)] for name, value in vars(batch).items() if id(value) in shape_of}
        return dataclasses.replace(batch, ids=ids, **shapes)


def stream(config: RunConfig, topology: Topology, census: Any) -> dict[str, Any]:
    """What the census counts while an actor of the streaming evaluation scores a shard, by a checkpoint not read."""
    scorer._alone = lambda: topology
    evaluate.require_same_meaning = lambda *args: SimpleNamespace(data=build.unknown_data(config.features))
    evaluate.load_for_scoring = lambda *args: None
    shard = sorted(config.data.prepared.glob("train-*.parquet"))[0]
    assemble = ShapesOfBatches(config.features, rows=STREAMED_ROWS, with_truth=False, pin_memory=False)
    with tempfile.TemporaryDirectory() as folder:
        target = Path(folder) / "scores.parquet"
        item = streaming.Item(shard, file_checksum(shard), Window(0, 1 << 50), Path("step-00000001"), target)
        opened = scorer.OpenScorer(config, STREAMED_ROWS)(item.checkpoint)
        census.start()
        rows = streaming.score(item, opened, config.features, assemble, STREAMED_ROWS)
        return {"rows": rows, "scoring": census.take()}


def main(cases: list[dict[str, Any]]) -> None:
    """Prints what became of each case."""
    sharding.alone()
    sharding.without_values()
    sharding.on_the_stand_in()
    joined = None
    for case in cases:
        rank, world_size = case["rank"], case["ranks"]
        if joined != (rank, world_size):
            if joined is not None:
                topologies._leave()
            ranks.join(rank, world_size)
            sharding.joined()
            joined = rank, world_size
        here = rank % ranks.HOST_RANKS, min(world_size, ranks.HOST_RANKS)
        topology = Topology(rank, world_size, *here, DEVICE, hosts=("host",) * world_size)
        found: dict[str, Any] = {"error": ""}
        began = time.process_time()
        streams = case["what"] == "stream"
        with stand_in.rehearsing(STREAMED_ROWS if streams else ROWS) as census, MUTATIONS[case["mutation"]]():
            try:
                config = load_config(case["file"], case["overrides"])
                if streams:
                    found |= stream(config, topology, census)
                else:
                    found |= rehearse(config, topology, census, sharded=case["what"] == "sharded")
            except Exception:
                found["error"] = traceback.format_exc()
        print(json.dumps(found | {"cpu_s": round(time.process_time() - began, 2)}), flush=True)


if __name__ == "__main__":
    main(json.loads(sys.argv[1]))
    os._exit(0)  # fake groups have nothing to take down
