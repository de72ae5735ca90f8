"""What a real step of two ranks does: where the host reads a tensor, how many operators it gives, what it allocates."""

import pytest

from tests.rehearsal.allowed import LARGEST_BYTES, OPERATORS, READS_OF_A_REAL_STEP
from tests.rehearsal.conftest import lines_of, needs_cuda_wheels, without_kernels


@pytest.fixture(scope="module")
def counted(launch, small_config, tmp_path_factory):
    """Of the first of two ranks, a step."""
    runs = tmp_path_factory.mktemp("census")
    given = [f"runs={runs}", "train.max_steps=10", "train.log_every=20", "dense.clip_norm=1.0"]
    ended = launch.forked("tests/rehearsal/census_cases.py", str(small_config), *given, ranks=2)
    return lines_of(ended)[0]


def test_a_step_reads_where_it_is_allowed_to(counted):
    found = {place: times / counted["steps"] for place, times in counted["places"].items()}
    assert found == {place: times for place, (times, _) in READS_OF_A_REAL_STEP.items()}


def test_a_step_takes_no_more_operators_and_memory_than_it_did(counted):
    operators = sum(counted["operators"].values()) / counted["steps"]
    assert 0.95 * OPERATORS < operators <= OPERATORS
    assert 0.5 * LARGEST_BYTES < counted["largest"] <= LARGEST_BYTES


def test_every_group_has_the_time_that_the_run_gives_its_exchanges(counted):
    """But that in which the checkpoints' threads wait for each other's disks, which may take longer."""
    longer = counted["timeouts"].pop("rankmixer_dist/parallel/topology.py:new_gloo_group")
    assert set(longer) <= {1234.0, 1800.0}
    assert len(counted["timeouts"]) > 1
    assert {seconds for of_place in counted["timeouts"].values() for seconds in of_place} == {1234.0}, counted


@needs_cuda_wheels
def test_every_operator_of_the_tables_has_a_kernel_for_gpus(counted):
    """Backward FBGEMM calls operators that no dispatch shows: its fused updates of bags and of sequences."""
    found = set(counted["operators"])
    lookups = {
        f"fbgemm.split_embedding{kind}_codegen_forward_unweighted_pt2_wrapper.default" for kind in ("", "_nobag")
    }
    updates = {
        f"fbgemm.split_embedding{kind}_backward_codegen_rowwise_adagrad_unweighted_exact_cuda.default"
        for kind in ("", "_nobag")
    }
    assert lookups <= found
    assert not without_kernels(found | updates)
