"""A run's whole state as a checkpoint, and back: tables, dense model, both optimizers, generators, data position."""

import math
from collections.abc import Mapping
from importlib.metadata import version
from pathlib import Path

import torch
from torch import nn

from rankmixer_dist.batch import Position
from rankmixer_dist.checkpoint.about import About, DataPosition
from rankmixer_dist.checkpoint.folder import TENSORS
from rankmixer_dist.checkpoint.index import read_index
from rankmixer_dist.checkpoint.opening import open_checkpoint
from rankmixer_dist.checkpoint.storage import read_pieces
from rankmixer_dist.config import RunConfig
from rankmixer_dist.errors import UserError
from rankmixer_dist.identity import DataSeen, checksums
from rankmixer_dist.parallel.engine import DenseEngine
from rankmixer_dist.parallel.topology import Topology, failing_together
from rankmixer_dist.pieces import Piece, module_pieces, places_of, whole
from rankmixer_dist.sparse.shard import Tables, table_pieces
from rankmixer_dist.train.loop import Progress
from rankmixer_dist.train.routing import Routing


def describe(
    config: RunConfig,
    progress: Progress,
    engine: DenseEngine,
    topology: Topology,
    metrics: Mapping[str, float],
    *,
    data: DataSeen | None = None,
    planned_steps: int | None = None,
    trained_before: int | None = 0,
) -> About:
    """Everything of a run's state that is not a tensor.

    Args:
        data: what the run has taken from its data.
        planned_steps: how long the run was to be when it began.
        trained_before: `trained_until` of the weights that the run, or its part since it was started again, began with.
    """
    return About(
        step=progress.step,
        rows=progress.rows,
        position=DataPosition(epoch=progress.position.epoch, row=progress.position.row),
        updates=engine.updates,
        moments=engine.moments(),
        shapes={name: place.shape for name, place in places_of(engine.module).items()},
        world_size=topology.world_size,
        config=config.model_dump(mode="json"),
        versions={package: version(package) for package in ("torch", "torchrec", "deepspeed")},
        metrics={name: value for name, value in metrics.items() if math.isfinite(value)},
        trained_until=_trained_until(config, progress.position, trained_before),
        identity=checksums(config.features, config.model),
        data=data or DataSeen(),
        planned_steps=planned_steps,
    )


def begun_splits(config: RunConfig, epoch: int) -> tuple[str, ...]:
    """The splits that a run has trained on by the time it is in `epoch` of its data position."""
    return config.train.splits[: epoch + 1 if config.train.in_turn else 1]


def _trained_until(config: RunConfig, position: Position, before: int | None) -> int | None:
    """Unix ms, the end of the last split that was begun, or of what the weights had seen before."""
    if before is None:
        return None
    return max(before, config.data.splits[begun_splits(config, position.epoch)[-1]].to_ms()[1])


def state_pieces(
    tables: Tables, engine: DenseEngine, topology: Topology, routing: Routing | None = None
) -> list[Piece]:
    """This rank's part of all tensors of a run's state."""
    routed = [] if routing is None else routing.pieces()
    return [*table_pieces(tables), *engine.pieces(), *routed, *_random_pieces(topology).values()]


def resume(
    checkpoint: Path, tables: Tables, engine: DenseEngine, topology: Topology, routing: Routing | None = None
) -> Progress:
    """Takes up the state that `checkpoint` holds, whatever ranks, devices, plan and ZeRO stage it was saved under.

    Random numbers go on where they were if the number of ranks is the same; else they begin anew. Those of a kind of
    device on which nothing was saved begin as in a new run. Rank 0 says so.

    Raises:
        UserError: it is damaged, or of another model.
    """
    about = _open(checkpoint, engine.module, topology)
    engine.make_room(about.moments, about.updates)
    random = _random_that_goes_on(checkpoint, about, topology)
    routed = [] if routing is None else routing.pieces()
    read_pieces([*table_pieces(tables), *engine.pieces(), *routed, *random.values()], checkpoint / TENSORS)
    engine.refresh()
    told = _set_random(random, about, topology)
    if told and topology.is_first:
        print(f"{checkpoint.name} {told}", flush=True)
    return Progress(about.step, about.rows, Position(about.position.epoch, about.position.row))


def load_for_scoring(checkpoint: Path, tables: Tables, module: nn.Module, topology: Topology) -> None:
    """Takes up the weights alone; raises as `resume` does."""
    _open(checkpoint, module, topology)
    read_pieces([*table_pieces(tables, ["weight"]), *module_pieces(module)], checkpoint / TENSORS)


def _random_pieces(topology: Topology) -> dict[str, Piece]:
    """Copies of this rank's generators' states, by the kind of their device."""
    states = {"cpu": torch.get_rng_state()}
    if topology.device.type == "cuda":
        states["cuda"] = torch.cuda.get_rng_state(topology.device)
    return {device: whole(f"random/{device}-{topology.rank:05d}", state) for device, state in states.items()}


def _random_that_goes_on(checkpoint: Path, about: About, topology: Topology) -> dict[str, Piece]:
    """Of `_random_pieces`, those whose state a checkpoint holds; a CPU's it must hold."""
    if about.world_size != topology.world_size:
        return {}
    held = read_index(checkpoint / TENSORS)
    own = _random_pieces(topology)
    return {device: piece for device, piece in own.items() if device == "cpu" or piece.key in held}


def _set_random(read: Mapping[str, Piece], about: About, topology: Topology) -> str:
    """Sets this rank's generators; what does not go on where it was, in words, or nothing."""
    if not read:
        torch.manual_seed(about.config["seed"] + about.step)
        ranks = f"{about.world_size} rank{'s' * (about.world_size > 1)}"
        return f"was saved by {ranks} and is taken up by {topology.world_size}: the random numbers begin anew"
    torch.set_rng_state(read["cpu"].tensor)
    if topology.device.type != "cuda":
        return ""
    if "cuda" in read:
        torch.cuda.set_rng_state(read["cuda"].tensor, topology.device)
        return ""
    torch.cuda.manual_seed(about.config["seed"])
    return "was saved without a GPU: the GPU's random numbers begin as in a new run, the CPU's go on"


def _open(checkpoint: Path, module: nn.Module, topology: Topology) -> About:
    about: About | None = None
    with failing_together():
        about = open_checkpoint(checkpoint, rank=topology.rank, world_size=topology.world_size)
        shapes = {name: place.shape for name, place in places_of(module).items()}
        for name in sorted(shapes.keys() | about.shapes.keys()):
            if shapes.get(name) != about.shapes.get(name):
                raise UserError(
                    f"{checkpoint}: saved from another model: parameter {name} has shape {about.shapes.get(name)} "
                    f"there and {shapes.get(name)} here"
                )
        if topology.is_first:
            keys = [key for key in read_index(checkpoint / TENSORS) if key.startswith("dense/")]
            kinds = sorted({key.rsplit(".", 1)[-1] for key in keys} - {"weight"})
            if kinds != sorted(about.moments):
                raise UserError(f"{checkpoint}: damaged: it is said to hold {sorted(about.moments)}, but holds {kinds}")
    assert about is not None
    return about
