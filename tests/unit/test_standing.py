"""Which rank a process is and which GPU it takes, for every launcher and number of GPUs, on a machine without any."""

import re
from dataclasses import replace

import pytest

from rankmixer_dist.errors import UserError
from rankmixer_dist.parallel.standing import (
    Standing,
    names_of_ranks,
    ranks_of_launcher,
    require_together,
    settled,
    standing,
)

PLACE = {"MASTER_ADDR": "host0", "MASTER_PORT": "29500"}
RANK_11 = {"RANK": "11", "LOCAL_RANK": "3", "WORLD_SIZE": "16"}
"""The fourth of eight on the second of two hosts."""
TORCHRUN = PLACE | RANK_11 | {"LOCAL_WORLD_SIZE": "8", "TORCHELASTIC_RUN_ID": "x", "GROUP_RANK": "1"}
DEEPSPEED = PLACE | RANK_11 | {"LOCAL_SIZE": "8", "CROSS_RANK": "1", "CROSS_SIZE": "2"}
SRUN = PLACE | {"SLURM_PROCID": "11", "SLURM_LOCALID": "3", "SLURM_STEP_ID": "0", "SLURM_STEP_NUM_TASKS": "16"}
SRUN |= {"SLURM_NTASKS": "16", "SLURM_NODEID": "1"}
MPIRUN = PLACE | {"OMPI_COMM_WORLD_RANK": "11", "OMPI_COMM_WORLD_SIZE": "16"}
MPIRUN |= {"OMPI_COMM_WORLD_LOCAL_RANK": "3", "OMPI_COMM_WORLD_LOCAL_SIZE": "8"}


def stands(env: dict[str, str], devices: int) -> Standing:
    return standing(env | ranks_of_launcher(env), devices)


@pytest.mark.parametrize(
    "env",
    [
        TORCHRUN,
        DEEPSPEED,
        SRUN | {"SLURM_NTASKS_PER_NODE": "8"},
        SRUN | {"SLURM_TASKS_PER_NODE": "8(x2)"},  # srun -N2 -n16
        SRUN | {"SLURM_STEP_TASKS_PER_NODE": "8(x2)", "SLURM_TASKS_PER_NODE": "16(x4)"},  # of a larger job
        SRUN | {"SLURM_STEP_TASKS_PER_NODE": "8,8", "SLURM_NTASKS_PER_NODE": "1"},  # of a batch job of a task a node
        SRUN | {"SLURM_TASKS_PER_NODE": "8(x2)", "SLURM_STEP_NUM_TASKS": "16", "SLURM_NTASKS": "32"},
        MPIRUN,
        MPIRUN | {"SLURM_PROCID": "1", "SLURM_STEP_ID": "0", "SLURM_STEP_NUM_TASKS": "2"},  # its helpers are srun's
    ],
)
@pytest.mark.parametrize(("devices", "device"), [(0, None), (1, 0), (8, 3), (16, 3)])
def test_every_launchers_rank_11_of_two_hosts(env: dict[str, str], devices: int, device: int | None) -> None:
    assert stands(env, devices) == Standing(11, 16, 3, 8, device)


def test_a_process_alone_takes_the_first_gpu() -> None:
    assert [stands({}, devices).device for devices in (0, 1, 8)] == [None, 0, 0]
    assert stands({}, 8) == Standing(0, 1, 0, None, 0)
    assert ranks_of_launcher({"OMPI_COMM_WORLD_RANK": "0", "OMPI_COMM_WORLD_SIZE": "1"}) == {}


def test_launchers_that_tell_no_local_rank() -> None:
    operator = PLACE | {"RANK": "1", "WORLD_SIZE": "2"}  # of Kubernetes: one process and one GPU a pod
    assert stands(operator, 1) == Standing(1, 2, 0, None, 0)
    by_torchrun = TORCHRUN | {"LOCAL_RANK": "0", "CUDA_VISIBLE_DEVICES": "3"}  # --virtual-local-rank
    assert stands(by_torchrun, 1).device == 0


@pytest.mark.parametrize(
    ("told", "nodes"),
    [("4,3(x2)", [4, 3, 3]), ("10", [10]), ("1(x10)", [1] * 10), ("2(x2),6", [2, 2, 6])],
)
def test_tasks_of_each_node_as_slurm_writes_them(told: str, nodes: list[int]) -> None:
    srun = SRUN | {"SLURM_PROCID": "0", "SLURM_LOCALID": "0", "SLURM_STEP_NUM_TASKS": "10"}
    srun |= {"SLURM_STEP_TASKS_PER_NODE": told}
    assert [stands(srun | {"SLURM_NODEID": str(n)}, 0).local_world_size for n in range(len(nodes))] == nodes


@pytest.mark.parametrize("told", [{}, {"SLURM_TASKS_PER_NODE": "8(x3)"}, {"SLURM_STEP_TASKS_PER_NODE": "8(x"}])
def test_a_srun_that_does_not_tell_the_tasks_of_a_node_is_refused(told: dict[str, str]) -> None:
    with pytest.raises(UserError, match=r"how many of its 16 tasks this node has; give it --ntasks-per-node"):
        stands(SRUN | told, 0)
    assert stands(SRUN | told | {"SLURM_NNODES": "1"}, 0).local_world_size == 16


@pytest.mark.parametrize(
    ("env", "devices", "told"),
    [
        (TORCHRUN, 4, "this host has 8 ranks, but they see 4 GPUs; start at most 4 ranks a host"),
        (TORCHRUN | {"LOCAL_RANK": "0"}, 4, "this host has 8 ranks, but they see 4 GPUs"),  # all say the same
        (SRUN | {"SLURM_NTASKS_PER_NODE": "8"}, 2, "srun --gpus-per-task=1"),
        (PLACE | {"RANK": "5", "WORLD_SIZE": "8", "LOCAL_RANK": "5"}, 4, "a rank with LOCAL_RANK 5, but they see 4"),
        (TORCHRUN | {"WORLD_SIZE": "4", "RANK": "3"}, 8, "LOCAL_WORLD_SIZE is 8, but WORLD_SIZE is 4"),
        (TORCHRUN | {"LOCAL_RANK": "8"}, 8, "LOCAL_RANK is 8, but the host has 8 ranks"),
        (TORCHRUN | {"LOCAL_WORLD_SIZE": "0"}, 8, "LOCAL_WORLD_SIZE is '0', not a number from 1 on"),
        (DEEPSPEED | {"LOCAL_SIZE": "many"}, 8, "LOCAL_SIZE is 'many', not a number"),
        ({"DS_ACCELERATOR": "cpu"}, 8, "DS_ACCELERATOR is cpu, which DeepSpeed alone obeys, and torch sees 8 GPUs; "),
        ({"DS_ACCELERATOR": "cpu"}, 1, "CUDA_VISIBLE_DEVICES= (nothing after it), or unset DS_ACCELERATOR"),
        ({"DS_ACCELERATOR": "cuda"}, 0, "DS_ACCELERATOR is cuda, but torch sees cpu here; unset it"),
        ({"DS_ACCELERATOR": "xpu"}, 1, "DS_ACCELERATOR is xpu, but torch sees cuda here; unset it"),
    ],
)
def test_what_cannot_be_is_refused_in_one_line(env: dict[str, str], devices: int, told: str) -> None:
    with pytest.raises(UserError, match=re.escape(told)) as raised:
        stands(env, devices)
    assert "\n" not in str(raised.value)


def test_an_accelerator_that_agrees_is_fine() -> None:
    assert stands({"DS_ACCELERATOR": "cpu"}, 0).device is None
    assert stands({"DS_ACCELERATOR": "cuda"}, 2).device == 0


def job(*hosts: int, gpus: int | None, order: str = "block") -> list[Standing]:
    """Ranks of hosts that have so many, each of which sees so many GPUs, numbered by `srun --distribution`."""
    places = [(host, local) for host, size in enumerate(hosts) for local in range(size)]
    if order == "cyclic":
        places.sort(key=lambda place: place[::-1])
    found = []
    for rank, (host, local) in enumerate(places):
        device = None if gpus is None else 0 if gpus == 1 else local
        gpu = None if gpus is None else f"GPU-{host}-{local}"
        found.append(Standing(rank, len(places), local, hosts[host], device, f"host{host}", gpu))
    return found


@pytest.mark.parametrize("gpus", [None, 1, 8])
@pytest.mark.parametrize("hosts", [(1,), (8,), (8, 8), (1, 1, 1), (3, 3), (8, 4), (4, 3, 3), (8,) * 64])
def test_ranks_of_any_hosts_in_any_order_go_together(hosts: tuple[int, ...], gpus: int | None) -> None:
    for order in ("block", "cyclic"):
        require_together(settled(job(*hosts, gpus=gpus, order=order)))


@pytest.mark.parametrize(
    ("ranks", "told"),
    [
        (
            [*job(2, 2, gpus=8)[:3], job(2, 2, gpus=None)[3]],
            "rank 3 on host1 has no GPU that torch can use, but rank 0 on host0 has one; see launch/doctor.py on host1",
        ),
        ([replace(one, gpu="GPU-1") for one in job(2, gpus=1)], "ranks 0 and 1 on host0 have the same GPU (GPU-1)"),
        (
            [replace(one, local_world_size=8) for one in job(4, 4, 4, gpus=None)],
            "LOCAL_WORLD_SIZE is 8 for 12 of 12 ranks, which are no whole hosts",
        ),
    ],
)
def test_ranks_that_do_not_go_together_are_refused_in_one_line(ranks: list[Standing], told: str) -> None:
    with pytest.raises(UserError, match=re.escape(told)) as raised:
        require_together(ranks)
    assert "\n" not in str(raised.value)


def test_ranks_of_a_host_are_counted_where_no_launcher_tells_them() -> None:
    ranks = [replace(one, local_world_size=None) for one in job(2, 2, gpus=None)]
    assert [one.local_world_size for one in settled(ranks)] == [2, 2, 2, 2]
    assert settled(job(4, 3, gpus=None)) == job(4, 3, gpus=None)


def test_names_of_ranks_are_those_of_all_launchers() -> None:
    for env in (TORCHRUN, DEEPSPEED, SRUN, MPIRUN):
        left = {name: value for name, value in env.items() if name not in names_of_ranks(env)}
        assert ranks_of_launcher(left) == {} and standing(left, 1) == Standing(0, 1, 0, None, 0)
    assert names_of_ranks({"HOME": "x", "SLURM_JOB_ID": "7"}) == []
