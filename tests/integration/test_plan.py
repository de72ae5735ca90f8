"""plan.py tells the sizes of a run that nothing has been prepared for, and whether this machine has the memory."""

import pytest
import torch

from rankmixer_dist.config import load_config
from rankmixer_dist.environment.machine import total_memory
from rankmixer_dist.errors import UserError
from rankmixer_dist.models.counted import count
from rankmixer_dist.parallel.topology import Topology
from rankmixer_dist.train.build import build_tables, machine_room, weightless_model
from rankmixer_dist.train.room import host_here, memory_for_tables


def test_the_sizes_are_those_of_the_model(launch, tmp_path):
    path, overrides = "configs/rankmixer_1b.yaml", ["name=unseen", f"runs={tmp_path}", f"data.prepared={tmp_path}/none"]
    planned = launch.python("launch/plan.py", path, *overrides)
    assert planned.returncode == 0, planned.stderr
    config = load_config(path, overrides)
    cost = count(weightless_model(config))
    for figure in (cost.parameters, cost.flops_per_row_forward, cost.flops_per_row_train):
        assert f"{figure:,}" in planned.stdout
    for name, table in config.features.tables.items():
        assert name in planned.stdout
        assert f"{table.rows:,}" in planned.stdout
    assert not list(tmp_path.iterdir())
    assert "do not fit" not in planned.stdout


def test_tables_beyond_memory_are_told_by_plan_and_refused_by_training(launch):
    beyond = ["features.tables.user.rows=40000000000", "sparse.placement=local"]
    planned = launch.python("launch/plan.py", "configs/quickstart.yaml", *beyond)
    assert planned.returncode == 0, planned.stderr
    config = load_config("configs/quickstart.yaml", beyond)
    needed = sum(table.rows * (table.dim + 1) * 4 for table in config.features.tables.values())
    room, _ = machine_room(config)
    needs = f"they need {needed / 2**30:,.2f} GiB (user 2,533.20 GiB, video 0.00 GiB, author 0.00 GiB, 4 more)"
    for figure in (needs, f"there are {room / 2**30:,.2f} GiB", f"{-(-needed // room):,} machines", "user.rows"):
        assert figure in planned.stdout
    with pytest.raises(UserError, match="do not fit the memory of one process: they need 2,533.20 GiB"):
        build_tables(config, Topology(0, 1, 0, 1, torch.device("cpu")), rows_per_rank=8)


def test_a_copy_for_checkpoints_takes_memory_too():
    def room(ranks, *overrides, saves):
        config = load_config("configs/quickstart.yaml", overrides)
        return memory_for_tables(config, host_here(torch.device("cpu"), ranks), saves=saves, dense_bytes=0)

    rooms = {saves: room(2, saves=saves) / (total_memory() / 2) for saves in (True, False)}
    assert 2 * rooms[True] < 1
    assert rooms[True] < rooms[False] < 1
    alone = "checkpoint.asynchronous=false"
    assert room(1, alone, saves=True) == room(1, saves=False)
    assert room(1, "sparse.memory_gib=1.5", saves=True) == 3 * 2**29
