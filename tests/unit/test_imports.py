"""What `large_imports` does to the collector, and gives back."""

import gc

import pytest

from rankmixer_dist.imports import large_imports


@pytest.fixture(autouse=True)
def nothing_stays_frozen():
    """Puts back what a test has taken from the collector."""
    yield
    gc.unfreeze()
    gc.enable()


def test_nothing_is_collected_meanwhile_and_what_came_is_permanent():
    frozen = gc.get_freeze_count()
    with large_imports():
        assert not gc.isenabled()
        came = [[] for _ in range(1000)]
    assert gc.isenabled()
    assert gc.get_freeze_count() >= frozen + len(came)


def test_a_failed_import_gives_the_collector_back():
    with pytest.raises(ImportError), large_imports():
        import rankmixer_dist.nothing_of_that_name  # noqa: F401
    assert gc.isenabled()


def test_a_collector_that_was_off_stays_off():
    gc.disable()
    with large_imports():
        pass
    assert not gc.isenabled()
