"""Who is a rank of several, as the launchers' environments say it."""

import json
import os
import re
from dataclasses import asdict

import pytest
import torch
import torch.distributed as dist

from rankmixer_dist.errors import UserError
from rankmixer_dist.parallel import topology
from rankmixer_dist.parallel.meeting import judged
from rankmixer_dist.parallel.standing import Standing, ranks_of_srun
from rankmixer_dist.parallel.topology import process_group

SHELL = {"SLURM_JOB_ID": "77", "SLURM_PROCID": "0", "SLURM_LOCALID": "0", "SLURM_NTASKS": "4", "SLURM_NPROCS": "4"}
"""Of the shell of an allocation of four tasks."""
TASK = SHELL | {"SLURM_PROCID": "3", "SLURM_LOCALID": "1", "SLURM_STEP_ID": "0", "SLURM_STEP_NUM_TASKS": "4"}
TASK |= {"SLURM_NTASKS_PER_NODE": "2"}
"""Of a task of srun."""


@pytest.mark.parametrize(
    ("env", "told"),
    [
        ({}, False),
        (SHELL, True),
        ({key: value for key, value in SHELL.items() if key != "SLURM_PROCID"}, True),  # salloc, on the login host
        (SHELL | {"SLURM_STEP_ID": "4294967291"}, True),  # a batch script
        (SHELL | {"SLURM_STEP_ID": "4294967294"}, True),  # an older one's
        (SHELL | {"SLURM_STEP_ID": "4294967290", "SLURM_STEP_NUM_TASKS": "1", "SLURM_PTY_PORT": "9"}, True),
        (SHELL | {"SLURM_STEP_ID": "0", "SLURM_STEP_NUM_TASKS": "1", "SLURM_PTY_PORT": "9"}, False),  # srun -n 1 --pty
        (TASK | {"SLURM_NTASKS": "1", "SLURM_STEP_NUM_TASKS": "1", "SLURM_PROCID": "0"}, False),
        (SHELL | {"SLURM_NTASKS": "1"}, False),
        (SHELL | {"SLURM_NTASKS": "4(x2)"}, False),
    ],
)
def test_what_srun_did_not_start_with_others_stands_alone(env, told, capsys):
    assert ranks_of_srun(env) == {}
    assert capsys.readouterr().err.count("SLURM planned 4 tasks, but srun did not start this process") == told


def test_a_task_of_srun_is_a_rank():
    ranks = {"RANK": "3", "WORLD_SIZE": "4", "LOCAL_RANK": "1", "LOCAL_WORLD_SIZE": "2"}
    assert ranks_of_srun(TASK) == ranks
    assert ranks_of_srun(TASK | {"SLURM_NTASKS": "8"}) == ranks  # of a job of eight
    older = {key: value for key, value in TASK.items() if key != "SLURM_STEP_NUM_TASKS"}
    assert ranks_of_srun(older) == ranks


def test_a_terminal_of_several_tasks_is_refused():
    with pytest.raises(UserError, match="srun --pty counts 4 tasks"):
        ranks_of_srun(TASK | {"SLURM_PTY_PORT": "9", "SLURM_PROCID": "0"})


@pytest.mark.parametrize("given", [TASK, {"RANK": "0", "WORLD_SIZE": "2"}, TASK | {"MASTER_ADDR": "localhost"}])
def test_ranks_that_do_not_know_where_to_meet_are_told_so(monkeypatch, given):
    for key in [key for key in os.environ if key.startswith(("SLURM_", "MASTER_"))]:
        monkeypatch.delenv(key)
    monkeypatch.setattr(os, "environ", os.environ | given)
    missing = "MASTER_PORT" if "MASTER_ADDR" in given else "MASTER_ADDR"
    with pytest.raises(UserError, match=rf"ranks, but {missing} is not set"), process_group():
        pass


@pytest.mark.parametrize(
    ("given", "told"),
    [
        ({"RANK": "x"}, "RANK is 'x', not a number from 0 on"),
        ({"RANK": "-1"}, "RANK is '-1', not a number from 0 on"),
        ({"RANK": "0", "WORLD_SIZE": "0"}, "WORLD_SIZE is '0', not a number from 1 on"),
        ({"RANK": "0", "LOCAL_RANK": ""}, "LOCAL_RANK is '', not a number"),
        ({"RANK": "2", "WORLD_SIZE": "2"}, "RANK is 2, but WORLD_SIZE is 2"),
    ],
)
def test_variables_of_launchers_that_make_no_sense_are_named(monkeypatch, given, told):
    for key in [key for key in os.environ if key.startswith("SLURM_")]:
        monkeypatch.delenv(key)
    monkeypatch.setattr(os, "environ", os.environ | given)
    with pytest.raises(UserError, match=re.escape(told)), process_group():
        pass


def joined(monkeypatch, env: dict[str, str], devices: int, others: list[Standing], gpu: str = "GPU-0"):
    """What `process_group` makes of rank 0's environment where torch sees so many GPUs, and of what `others` say."""
    for key in [key for key in os.environ if key.startswith(("SLURM_", "OMPI_")) or key == "DS_ACCELERATOR"]:
        monkeypatch.delenv(key)
    store, begun = dist.HashStore(), {}
    for other in others:
        store.set(f"said/{other.rank}", json.dumps(asdict(other)))
    monkeypatch.setattr(os, "environ", os.environ | env)
    monkeypatch.setattr(topology, "gpus_seen", lambda: devices)
    monkeypatch.setattr(topology, "require_kernels", lambda: None)
    monkeypatch.setattr(topology, "_identity", lambda device: gpu)
    monkeypatch.setattr(topology, "meeting_store", lambda *_: store)
    monkeypatch.setattr(torch.cuda, "set_device", lambda device: begun.update(device=device))
    monkeypatch.setattr(dist, "init_process_group", lambda backend, **kwargs: begun.update(backend=backend, **kwargs))
    monkeypatch.setattr(dist, "barrier", lambda: None)
    monkeypatch.setattr(dist, "destroy_process_group", lambda: None)
    with process_group(timeout_s=1234.0) as found:
        assert dist.distributed_c10d._get_default_timeout("nccl").total_seconds() == 1234
        assert dist.distributed_c10d._get_default_timeout("gloo").total_seconds() == 1234
    assert dist.distributed_c10d._get_default_timeout("gloo").total_seconds() != 1234
    assert begun["timeout"].total_seconds() == 1234
    return found, begun


GPU_TASK = TASK | {"SLURM_PROCID": "0", "SLURM_LOCALID": "0", "SLURM_STEP_NUM_TASKS": "2"}
GPU_TASK |= {"SLURM_STEP_TASKS_PER_NODE": "2", "SLURM_NODEID": "0", "MASTER_ADDR": "h", "MASTER_PORT": "1"}


def test_a_task_that_sees_its_own_gpu_alone_works_on_it(monkeypatch):
    other = Standing(1, 2, 1, 2, device=0, host="here", gpu="GPU-1")
    found, begun = joined(monkeypatch, GPU_TASK, 1, [other])
    assert found.device == begun["device"] == torch.device("cuda", 0)
    assert begun["backend"] == "cpu:gloo,cuda:nccl"
    assert (found.local_rank, found.local_world_size) == (0, 2)
    assert os.environ["LOCAL_WORLD_SIZE"] == "2"


def test_a_task_that_sees_all_gpus_takes_that_of_its_local_rank(monkeypatch):
    found, begun = joined(monkeypatch, GPU_TASK, 2, [Standing(1, 2, 1, 2, device=1, host="here", gpu="GPU-1")])
    assert begun["device"].index == found.device.index == 0


def test_two_ranks_with_one_gpu_are_refused_on_all_ranks(monkeypatch):
    other = Standing(1, 2, 1, 2, device=0, host="here", gpu="GPU-0")
    with pytest.raises(UserError, match=r"ranks 0 and 1 on here have the same GPU \(GPU-0\)"):
        joined(monkeypatch, GPU_TASK, 1, [other])
    store = topology.meeting_store()
    assert "have the same GPU" in json.loads(store.get("verdict"))["refused"]
    with pytest.raises(UserError, match="have the same GPU"):
        judged(store, 1, 2, "{}", lambda told: "")
