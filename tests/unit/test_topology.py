"""Who is a rank of several, as the launchers' environments say it."""

import os
import re

import pytest

from rankmixer_dist.errors import UserError
from rankmixer_dist.parallel.standing import ranks_of_srun
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
