"""Sharded tables beside unsharded ones, for sizes at which rows, tables or ids do not reach every rank."""

import itertools
import json

import pytest
import torch
from torchrec.distributed.sharding_plan import calculate_shard_sizes_and_offsets

from rankmixer_dist.sparse.placement import ROW_WISE, reaches_all_ranks

TOLERANCE = 2e-6
"""Relative to the largest value of a table or of its accumulators, after four steps; 4.8e-7 seen."""


@pytest.fixture(scope="module")
def trained(launch, tmp_path_factory):
    """Ranks -> what each case of `sharding_cases` ended with."""
    folder = tmp_path_factory.mktemp("sharding")
    ended = launch.python("tests/distributed/sharding_cases.py", str(folder))
    assert ended.returncode == 0, ended.stderr[-3000:]
    return {ranks: json.loads((folder / f"ranks{ranks}.json").read_text()) for ranks in (2, 3, 4)}


@pytest.mark.parametrize("ranks", [2, 3, 4])
def test_all_ranks_refuse_tables_beyond_their_memory(trained, ranks):
    told = trained[ranks]["refusals"]
    assert len(told) == ranks
    assert set(told) == {told[0]}
    assert told[0].startswith(f"the tables do not fit the memory of {ranks} ranks: they need 0.00 GiB (large")
    assert f"there are {ranks} x 0.00 GiB for tables" in told[0]
    assert "\n" not in told[0]


@pytest.mark.parametrize("ranks", [2, 3, 4])
def test_tables_fit_the_rank_with_the_least_memory(trained, ranks):
    told = trained[ranks]["uneven"]
    planned = told["planned_for"]
    assert planned["memory_bytes"] == int(0.6 * 2 * told["needed"] / ranks)
    assert max(told["held"]) <= planned["memory_bytes"]
    assert f"than rank {ranks - 1}, " in planned["note"]
    refusals = trained[ranks]["of_one"]
    assert set(refusals) == {refusals[0]}
    assert f"there are {ranks} x 0.00 GiB for tables" in refusals[0]
    assert refusals[0].endswith(f"than rank {ranks - 1}, 0.00 GiB; rank 0 has 1.00 GiB")


@pytest.mark.parametrize("ranks", [3, 4])
def test_more_ranks_load_tables_of_any_size_that_fewer_saved(trained, ranks):
    assert trained[ranks]["taken_up"] == []


def test_the_cut_is_the_one_that_torchrec_makes():
    for rows, ranks in itertools.product(range(2, 120), range(1, 17)):
        sizes, _ = calculate_shard_sizes_and_offsets(torch.empty(rows, 4, device="meta"), ranks, ranks, ROW_WISE)
        assert reaches_all_ranks(rows, ranks) == all(size[0] > 0 for size in sizes)


@pytest.mark.parametrize("ranks", [2, 3, 4])
def test_tables_of_any_size_match_unsharded_ones(trained, ranks):
    assert len(trained[ranks]["cases"]) == 40
    gaps = {case: result["gap"] for case, result in trained[ranks]["cases"].items()}
    assert max(gaps.values()) <= TOLERANCE, {case: gap for case, gap in gaps.items() if gap > TOLERANCE}


@pytest.mark.parametrize("ranks", [2, 3, 4])
@pytest.mark.parametrize("rows", range(2, 7))
def test_row_wise_is_kept_where_each_rank_gets_rows(trained, ranks, rows):
    """The plan asks for row-wise; what comes of it is the same for bags and sequences."""
    blocks = -(-rows // ranks)
    fits = len(range(0, rows, blocks)) == ranks
    assert reaches_all_ranks(rows, ranks) == fits
    for kind in ("bags", "sequences"):
        sharding, reason = trained[ranks]["cases"][f"{rows} rows, {kind}, row_wise"]["plan"]["small"]
        assert sharding == ("row_wise" if fits else "table_wise")
        assert ("cannot be kept" in reason) != fits
