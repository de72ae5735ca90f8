"""Run on ranks: saves the state of each kind of engine and goes on from it in every other kind."""

import json
import tempfile
from pathlib import Path

import torch
import torch.distributed as dist
from torch import nn

from rankmixer_dist.checkpoint.storage import read_pieces, read_whole, write_pieces
from rankmixer_dist.command_line import run_verb
from rankmixer_dist.parallel import engine as engines
from rankmixer_dist.parallel.engine import DeepSpeedEngine, OptimizerSettings
from rankmixer_dist.parallel.expert_groups import expert_grid
from rankmixer_dist.parallel.preemption import StopRequest
from rankmixer_dist.parallel.topology import Topology, broadcast_object, new_gloo_group, process_group, sum_over_ranks

ROWS, BEFORE, AFTER = 24, 5, 6
SMALL_BUCKET = 40
"""Of 366 elements: three parameters are larger, the others fill several."""
TIMEOUT_S, LONGER_S = 1234.0, 5000.0


def timeouts(topology: Topology) -> list[float]:
    """Seconds that exchanges may take, of every group that this project or a library of its makes."""
    expert_grid(2)
    new_gloo_group(), new_gloo_group(at_least_s=LONGER_S)
    with StopRequest(topology):
        groups = [*dist.distributed_c10d._world.pg_map]
        return [one._get_backend(torch.device("cpu")).options._timeout.total_seconds() for one in groups]


def main(arguments: list[str]) -> None:
    """Takes precision and optimizer; prints a JSON object per (stage saved from, stage loaded into)."""
    precision, kind = arguments
    settings = OptimizerSettings(kind=kind, lr=0.01, weight_decay=0.01, clip_norm=0.3)
    with process_group(timeout_s=TIMEOUT_S) as topology:
        share = ROWS // topology.world_size
        mine = slice(topology.rank * share, (topology.rank + 1) * share)

        def engine(stage: int, seed: int) -> DeepSpeedEngine:
            torch.manual_seed(seed)
            module = nn.Sequential(nn.Linear(5, 33), nn.GELU(), nn.LayerNorm(33), nn.Linear(33, 3))
            return DeepSpeedEngine(module, settings, zero_stage=stage, precision=precision, rows_per_rank=share)

        def losses(trained: DeepSpeedEngine, steps: range) -> list[float]:
            found = []
            for step in steps:
                random = torch.Generator().manual_seed(step)
                x, y = torch.randn(ROWS, 5, generator=random)[mine], torch.randn(ROWS, 3, generator=random)[mine]
                logits = trained(x.to(next(trained.module.parameters()).dtype))
                loss = ((logits.float() - y) ** 2).sum() / ROWS
                trained.backward(loss * topology.world_size)
                trained.step(0.01 / (1 + step))
                found.append(float(sum_over_ranks(loss)))
            return found

        for stage in (1, 2):
            states = []
            whole_model = engines._MOST_BUCKET_ELEMENTS
            for most in (whole_model, SMALL_BUCKET):
                engines._MOST_BUCKET_ELEMENTS = most
                trained = engine(stage, seed=0)
                losses(trained, range(BEFORE))
                states.append({(piece.key, piece.offsets): piece.tensor.clone() for piece in trained.pieces()})
            engines._MOST_BUCKET_ELEMENTS = whole_model
            of_whole, of_small = states
            same = of_small.keys() == of_whole.keys()
            same &= all(torch.equal(of_small[key], tensor) for key, tensor in of_whole.items())
            if topology.is_first:
                print(json.dumps({"stage": stage, "same_in_small_buckets": same}), flush=True)
        for source in (0, 1, 2):
            saved_from = engine(source, seed=0)
            start = losses(saved_from, range(BEFORE))
            folder = Path(broadcast_object(tempfile.mkdtemp()))
            write_pieces(saved_from.pieces(), folder / "saved")
            state, moments = read_whole(folder / "saved"), saved_from.moments()
            expected = losses(saved_from, range(BEFORE, BEFORE + AFTER))
            for target in (0, 1, 2):
                loaded_into = engine(target, seed=1)
                loaded_into.make_room(moments, BEFORE)
                read_pieces(loaded_into.pieces(), folder / "saved")
                loaded_into.refresh()
                write_pieces(loaded_into.pieces(), folder / f"again-{target}")
                again = read_whole(folder / f"again-{target}")
                same = again.keys() == state.keys() and len(state) == 6 * (1 + len(moments)) > 6
                same &= all(torch.equal(again[key], tensor) for key, tensor in state.items())
                same &= loaded_into.updates == BEFORE
                found = losses(loaded_into, range(BEFORE, BEFORE + AFTER))
                if topology.is_first:
                    line = {"source": source, "target": target, "same_state": same, "start": start}
                    print(json.dumps(line | {"expected": expected, "found": found}), flush=True)
        found = timeouts(topology)
        if topology.is_first:
            print(json.dumps({"timeouts": found}), flush=True)


if __name__ == "__main__":
    run_verb(main)
