"""The record of rows that made no finite loss, when a run goes on."""

import json

import pytest
import torch

from rankmixer_dist.parallel.topology import Topology
from rankmixer_dist.train.non_finite import FILE_NAME, NonFiniteRows

LINES = [{"step": step, "row_ids": [step], "skipped": step != 6} for step in (3, 5, 6, 8)]


@pytest.mark.parametrize(("resume_step", "kept"), [(0, {6}), (4, {3, 6}), (5, {3, 5, 6}), (9, {3, 5, 6, 8})])
def test_steps_that_will_be_left_out_again_are_removed_and_what_ended_a_run_stays(tmp_path, resume_step, kept):
    path = tmp_path / FILE_NAME
    path.write_text("".join(json.dumps(line) + "\n" for line in LINES) + '{"step": 1')
    for rank in (1, 0):
        before = path.read_text()
        topology = Topology(rank, 2, rank, 2, torch.device("cpu"))
        NonFiniteRows(tmp_path, topology, resume_step=resume_step)
        assert rank == 0 or path.read_text() == before
    assert [json.loads(line) for line in path.read_text().splitlines()] == [
        line for line in LINES if line["step"] in kept
    ]


def test_a_run_without_such_rows_has_no_record(tmp_path):
    NonFiniteRows(tmp_path, Topology(0, 1, 0, 1, torch.device("cpu")), resume_step=0)
    assert not (tmp_path / FILE_NAME).exists()
