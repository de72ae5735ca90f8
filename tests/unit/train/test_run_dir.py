"""A run directory goes on with a config that says the same, whatever program wrote its own."""

from pathlib import Path

import pytest
import yaml

from rankmixer_dist.config import RunConfig, load_config
from rankmixer_dist.errors import UserError
from rankmixer_dist.train.run_dir import check_run_dir, claim_run_dir

ROOT = Path(__file__).resolve().parents[3]


def config(tmp_path: Path, *overrides: str) -> RunConfig:
    return load_config(ROOT / "configs" / "quickstart.yaml", [f"runs={tmp_path}", *overrides])


@pytest.fixture
def earlier(tmp_path: Path) -> Path:
    """The directory of a run by a program that had neither lanes nor scopes."""
    claim_run_dir(config(tmp_path))
    path = tmp_path / "quickstart" / "config.yaml"
    keys = yaml.safe_load(path.read_text())
    del keys["loader"]["interleave"]
    for feature in keys["features"]["features"].values():
        del feature["scope"]
    path.write_text(yaml.safe_dump(keys, sort_keys=False))
    return path


def test_a_key_that_an_earlier_program_lacked_has_its_default(earlier: Path, tmp_path: Path) -> None:
    check_run_dir(config(tmp_path))
    with pytest.raises(UserError, match=r"already holds another config: loader\.interleave was 1 and is now 4"):
        check_run_dir(config(tmp_path, "loader.interleave=4"))


def test_a_key_that_has_gone_is_named(earlier: Path, tmp_path: Path) -> None:
    keys = yaml.safe_load(earlier.read_text())
    keys["loader"]["lookback"] = 3
    earlier.write_text(yaml.safe_dump(keys, sort_keys=False))
    with pytest.raises(UserError, match=r"already holds another config: loader\.lookback was 3 and is now None"):
        check_run_dir(config(tmp_path))
