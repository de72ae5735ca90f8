"""Run on three ranks, one of which begins otherwise than the others, in one way a case."""

import json
import os
import sys
from pathlib import Path
from typing import Any

import torch

from rankmixer_dist.checkpoint.folder import checkpoints
from rankmixer_dist.checkpoint.saver import Saver
from rankmixer_dist.command_line import run_verb
from rankmixer_dist.config import load_config
from rankmixer_dist.errors import UserError
from rankmixer_dist.parallel import alike
from rankmixer_dist.parallel.topology import Topology, all_gather_objects, process_group
from rankmixer_dist.pieces import whole
from rankmixer_dist.train import same_start
from rankmixer_dist.verbs import train
from tests.unit.checkpoint.conftest import about


def main(arguments: list[str]) -> None:
    """Takes a config file, a folder for what each case was refused with, and the cases; the last of them ends it.

    A case: `rank`, which is the odd one, its `overrides`, the root of its `code`, and where it has another `checkpoint`
    than the others to start from; `all` are overrides of all ranks, `name` the run's, else the case's.
    """
    path, folder, cases = arguments
    alike._PATIENCE_S = 0.5
    root = same_start._ROOT
    with process_group() as topology:
        _note(folder, "saver", all_gather_objects(not_shared_any_more(Path(folder), topology)), topology)
        for name, case in (parsed := json.loads(cases)).items():
            odd = topology.rank == case["rank"]
            same_start._ROOT = Path(case["code"]) if odd and "code" in case else root
            alike_overrides = [f"name=alike-{case.get('name', name)}", "loader.batch_size=126", "train.max_steps=1"]
            alike_overrides += case.get("all", [])
            config = load_config(path, [*alike_overrides, *(case["overrides"] if odd else [])])
            if "checkpoint" in case:
                os.chdir(case["checkpoint"] if odd else config.runs)
            try:
                train.run_on(config, topology)
                told = "nothing"
            except UserError as error:
                if name == [*parsed][-1]:
                    raise
                told = str(error)
            _note(folder, name, all_gather_objects(told), topology)


def not_shared_any_more(folder: Path, topology: Topology) -> list[Any]:
    """What is told, and which checkpoints each rank has, once a rank that saw the folder writes elsewhere."""
    weight = [whole(f"dense/{topology.rank}.weight", torch.ones(5))]
    shared = Saver(folder / "shared", topology, keep=1)
    shared.save(about(1), weight)
    shared.finish()
    apart = Saver(folder / ("shared" if topology.is_first else f"own-{topology.rank}"), topology, keep=1)
    apart.save(about(2), weight)
    try:
        apart.finish()
    except UserError as error:
        return [str(error), [path.name for path in checkpoints(folder / "shared")]]
    return ["nothing", []]


def _note(folder: str, name: str, of_ranks: list[Any], topology: Topology) -> None:
    if topology.is_first:
        (Path(folder) / f"{name}.json").write_text(json.dumps(of_ranks))


if __name__ == "__main__":
    sys.path.insert(0, str(Path(__file__).parents[2]))
    run_verb(main)
