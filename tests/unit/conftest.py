"""Fixtures that several of the unit tests use."""

import pytest

from rankmixer_dist.parallel.topology import process_group


@pytest.fixture(scope="session")
def one_rank():
    """A process group of this process alone."""
    with process_group() as topology:
        yield topology
