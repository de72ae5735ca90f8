"""Ranks of one start meet in a store that keeps what those of an earlier start wrote."""

from concurrent.futures import ThreadPoolExecutor
from datetime import timedelta

import pytest
import torch.distributed as dist

from rankmixer_dist.errors import UserError
from rankmixer_dist.parallel import meeting

RANKS = 5


@pytest.fixture
def stores():
    """One store, and a connection of each rank to it."""
    first = dist.TCPStore("127.0.0.1", 0, None, True, wait_for_workers=False)
    others = [
        dist.TCPStore("127.0.0.1", first.port, None, False, timedelta(seconds=20), wait_for_workers=False)
        for _ in range(1, RANKS)
    ]
    return [first, *others]


def meet(stores):
    """The store of a start of all ranks, as each of them sees it."""
    with ThreadPoolExecutor(RANKS) as ranks:
        return [*ranks.map(lambda rank: meeting._of_this_start(stores[rank], rank, RANKS, 20.0), range(RANKS))]


def test_each_start_has_a_part_of_the_store_to_itself(stores):
    for value in ("first", "second"):
        of_ranks = meet(stores)
        assert not of_ranks[-1].check(["said"])
        of_ranks[0].set("said", value)
        assert {store.get("said").decode() for store in of_ranks} == {value}


def test_who_did_not_come_is_named(stores):
    with ThreadPoolExecutor(RANKS) as ranks:
        came = [ranks.submit(meeting._of_this_start, stores[rank], rank, RANKS, 1.0) for rank in (0, 1, 3)]
    with pytest.raises(UserError, match=r"^rank 2, 4 of 5 did not come"):
        came[0].result()
    with pytest.raises(UserError, match="^rank 0 did not answer within 1 s"):
        came[1].result()


def test_more_ranks_do_not_ask_the_store_more_often():
    assert meeting._pause_s(2) == 0.02
    assert [ranks / meeting._pause_s(ranks) for ranks in (100, 4096)] == [5000, 5000]
