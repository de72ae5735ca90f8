"""Runs that nobody disturbed, to compare disturbed ones with."""

from pathlib import Path

import pytest

from tests.integration.jobs import Calm, a_run, torchrun, train_undisturbed


@pytest.fixture(scope="session")
def calm(launch, small_config: Path, tmp_path_factory: pytest.TempPathFactory) -> Calm:
    """A run of three epochs on two ranks."""
    run = a_run(small_config, "calm", epochs=3, batch_size=128)
    return train_undisturbed(launch, run, torchrun(run), tmp_path_factory.mktemp("calm") / "log")


@pytest.fixture(scope="session")
def calm_alone(launch, small_config: Path, tmp_path_factory: pytest.TempPathFactory) -> Calm:
    """The same run in one process."""
    run = a_run(small_config, "calm_alone", epochs=3, batch_size=128)
    return train_undisturbed(launch, run, run.arguments(), tmp_path_factory.mktemp("calm") / "log")
