"""What is there, and what cannot be told: the same answers under every Python."""

import os
from pathlib import Path

import pytest

from data_pipeline.sources.parquet_log import list_files
from rankmixer_dist.checkpoint.folder import checkpoints
from rankmixer_dist.errors import UserError
from rankmixer_dist.there import is_file, is_folder, is_there, matching


def test_each_kind_is_told_from_the_others(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    (tmp_path / "folder").mkdir()
    os.mkfifo(tmp_path / "pipe")
    for name, to in (("link", "folder"), ("dead", "nowhere"), ("round", "round")):
        (tmp_path / name).symlink_to(to)
    kinds = {path.name: (is_there(path), is_file(path), is_folder(path)) for path in tmp_path.iterdir()}
    assert kinds == {
        "file": (True, True, False),
        "folder": (True, False, True),
        "link": (True, False, True),
        "pipe": (True, False, False),
        "dead": (False, False, False),
        "round": (False, False, False),
    }
    assert not is_there(tmp_path / "file" / "below")
    assert not is_there(Path("no\0name"))


def test_what_matches_is_in_order(tmp_path: Path) -> None:
    for name in ("b/2.parquet", "b/1.parquet", "a/3.parquet", "a/x.txt", "4.parquet"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).touch()
    found = [str(path.relative_to(tmp_path)) for path in matching(tmp_path, "*/*.parquet")]
    assert found == ["a/3.parquet", "b/1.parquet", "b/2.parquet"]
    assert matching(tmp_path, "*.parquet") == [tmp_path / "4.parquet"]
    assert matching(tmp_path / "nowhere", "*") == matching(tmp_path / "4.parquet", "*") == []


@pytest.mark.parametrize("error", [PermissionError(13, "Permission denied"), OSError(5, "Input/output error")])
def test_an_error_is_no_answer(error: OSError, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object, **__: object) -> None:
        raise error

    for name in ("stat", "listdir", "scandir"):  # root may read everything, and no disk fails when it should
        monkeypatch.setattr(os, name, fail)
    with pytest.raises(OSError, match=error.strerror):
        is_there(tmp_path)
    with pytest.raises(OSError, match=error.strerror):
        checkpoints(tmp_path)
    with pytest.raises(UserError, match=rf"^source.path {tmp_path}: cannot be listed \(.*{error.strerror}\)$"):
        list_files(tmp_path, "log_*.parquet")


def test_a_name_that_is_too_long_is_told_as_such() -> None:
    with pytest.raises(OSError, match="name too long"):
        is_file(Path("n" * 300))
