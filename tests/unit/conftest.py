"""Fixtures that several of the unit tests use."""

import pytest

from rankmixer_dist.parallel.topology import process_group


@pytest.fixture(scope="module")
def one_rank():
    """A process group of this process alone. Other modules join groups of their own."""
    with process_group() as topology:
        yield topology
