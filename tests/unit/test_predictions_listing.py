"""Folders of predictions as people have them: links, other formats, leftovers; no row twice, none missing."""

import os
import shutil
import socket
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from data_pipeline.job import SerialJob
from data_pipeline.predictions import ColumnNames, evaluate_predictions, find_predictions
from data_pipeline.predictions.listing import list_files
from rankmixer_dist.errors import UserError


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """One file of 10 rows in a folder, another one in `tmp_path / "disk2"`."""
    rows = {"user_id": np.arange(10) % 3, "label": np.arange(10) % 2, "score": np.linspace(0, 1, 10)}
    for name in ("all/day=1", "disk2/day=2"):
        (tmp_path / name).mkdir(parents=True)
        pq.write_table(pa.table(rows), tmp_path / name / "part-0.parquet")
    return tmp_path / "all"


def names(folder: Path) -> list[str]:
    return [str(path.relative_to(folder)) for path in list_files(folder)[0]]


def test_links_are_followed_and_nothing_is_read_twice(folder: Path) -> None:
    (folder / "day=2").symlink_to("../disk2/day=2")
    (folder / "latest").symlink_to("day=2")
    (folder / "day=1" / "up").symlink_to("..")
    (folder / "a.parquet").symlink_to("day=1/part-0.parquet")
    (folder / "round").symlink_to(folder.parent)
    paths, told = list_files(folder)
    assert [str(path.relative_to(folder)) for path in paths] == ["day=1/part-0.parquet", "day=2/part-0.parquet"]
    assert sorted(told) == [
        f"{folder}/a.parquet: is the same as {folder}/day=1/part-0.parquet, and read once",
        f"{folder}/day=1/up: is the same as {folder}, and read once",
        f"{folder}/latest: is the same as {folder}/day=2, and read once",
        f"{folder}/round/all: is the same as {folder}, and read once",
        f"{folder}/round/disk2/day=2: is the same as {folder}/day=2, and read once",
    ]
    predictions = find_predictions(folder, ColumnNames())
    assert evaluate_predictions(predictions, job=SerialJob(), progress=False)["rows"] == 20
    link = folder.parent / "link"
    link.symlink_to(folder)
    assert [path.relative_to(link) for path in list_files(link)[0]] == [path.relative_to(folder) for path in paths]


def test_notes_are_told(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    os.link(folder / "day=1" / "part-0.parquet", folder / "twin.parquet")
    predictions = find_predictions(folder, ColumnNames())
    assert evaluate_predictions(predictions, job=SerialJob(), progress=False)["rows"] == 10
    told = f"warning: {folder}/day=1/part-0.parquet: is the same as {folder}/twin.parquet, and read once"
    assert told in capsys.readouterr().err


@pytest.mark.parametrize("target", ["nowhere", "dead"])
def test_a_link_that_leads_nowhere(target: str, folder: Path) -> None:
    (folder / "dead").symlink_to(target)
    with pytest.raises(UserError, match=rf"^{folder}/dead: a link that leads nowhere \(.*\); mend or remove it$"):
        list_files(folder)


@pytest.mark.parametrize("name", ["PART-1.PARQUET", "part-1.parq", "000000_0", "part-1.gz.parquet", "day.3/x.parquet"])
def test_other_names_of_parquet_are_read(name: str, folder: Path) -> None:
    (folder / name).parent.mkdir(exist_ok=True)
    shutil.copy(folder / "day=1" / "part-0.parquet", folder / name)
    assert sorted(names(folder)) == sorted([name, "day=1/part-0.parquet"])


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("_SUCCESS", b""),
        (".part-0.parquet.crc", b"crc"),
        ("_metadata", b"PAR1"),
        ("_common_metadata", b"PAR1"),
        ("_temporary/0/part-9.parquet", b"PAR1"),
        (".hidden/part-9.parquet", b"PAR1"),
        ("README", b"the predictions of"),
        ("notes.txt", b"1,2,3"),
        ("part-0.parquet.eval.json", b'{"predictions": "x"}'),
        ("run.log.gz", b"\x1f\x8b"),
        ("empty", b""),
    ],
)
def test_what_holds_no_rows_is_left_out(name: str, content: bytes, folder: Path) -> None:
    (folder / name).parent.mkdir(parents=True, exist_ok=True)
    (folder / name).write_bytes(content)
    assert names(folder) == ["day=1/part-0.parquet"]
    hidden = name.startswith((".", "_"))
    assert list_files(folder)[1] == ([] if hidden else [f"{folder / name}: not Parquet, and left out"])
    (folder / "zz").touch()
    assert list_files(folder)[1][0].endswith(f"{'zz' if hidden else ' and 1 more'}: not Parquet, and left out")


@pytest.mark.parametrize(
    ("name", "content", "told"),
    [
        ("part-1.csv", b"a,b", "is not Parquet, and its rows would be missing; write it as Parquet, or move it away"),
        ("part-1.JSON", b'{"a": 1}\n{"a": 2}\n', "is not Parquet, and its rows"),
        ("part-1.json", b'[{"a": 1}]', "is not Parquet, and its rows"),
        ("part-1.json", b"[" * 100_000, "is not Parquet, and its rows"),
        ("part-1.jsonl", b'{"a": 1}', "is not Parquet, and its rows"),
        ("part-1.snappy.orc", b"ORC", "is not Parquet, and its rows"),
        ("000000_0", b"ORC\x00", "is not Parquet, and its rows"),
        ("day=3/data.tar", b"", "is not Parquet, and its rows"),
        ("part-1.parquet.gz", b"\x1f\x8b", "is packed, and its rows would be missing; unpack it, or move it away"),
        ("part-00000.gz", b"\x1f\x8b", "is packed, and its rows"),
        ("part-1.csv.ZST", b"", "is packed, and its rows"),
        ("part-1.parquet.bak", b"PAR1", "is Parquet, but not by its name; rename it to *.parquet, or move it away"),
    ],
)
def test_rows_of_other_formats_are_not_left_out_in_silence(name: str, content: bytes, told: str, folder: Path) -> None:
    (folder / name).parent.mkdir(exist_ok=True)
    (folder / name).write_bytes(content)
    with pytest.raises(UserError) as caught:
        list_files(folder)
    assert str(caught.value).startswith(f"{folder}/{name}: {told}")


@pytest.mark.parametrize(
    ("mark", "kind"),
    [
        ("_delta_log/00000.json", "a Delta table"),
        (".hoodie/hoodie.properties", "a Hudi table"),
        ("metadata/v1.metadata.json", "an Iceberg table"),
        ("metadata/version-hint.text", "an Iceberg table"),
        ("_spark_metadata/0", "the output of a Spark stream"),
    ],
)
def test_a_table_whose_log_says_which_files_count(mark: str, kind: str, folder: Path) -> None:
    (folder / mark).parent.mkdir()
    (folder / mark).touch()
    for named in (folder, folder.parent, folder / "day=1"):
        with pytest.raises(UserError, match=f"^{folder}: is {kind}, whose log says which files count; write its"):
            list_files(named)


def test_what_is_no_regular_file(folder: Path) -> None:
    os.mkfifo(folder / "day=1" / "pipe.parquet")
    with pytest.raises(UserError, match=r"day=1/pipe\.parquet: is no regular file; move it away"):
        list_files(folder)
    for path in (folder / "day=1" / "pipe.parquet", Path(os.devnull)):
        with pytest.raises(UserError, match=f"^--predictions {path}: is neither a file nor a folder"):
            list_files(path)
    (folder / "day=1" / "pipe.parquet").unlink()
    with socket.socket(socket.AF_UNIX) as server:
        server.bind(str(folder / "s"))
        with pytest.raises(UserError, match=r"/s: is no regular file"):
            list_files(folder)


def test_a_folder_that_may_not_be_listed(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    scandir = os.scandir

    def listed(path: Any) -> Any:  # root may list everything
        if Path(path).name == "day=1":
            raise PermissionError(13, "Permission denied", str(path))
        return scandir(path)

    monkeypatch.setattr(os, "scandir", listed)
    with pytest.raises(UserError, match=r"cannot be listed, name the folder of the files alone: .*denied: '.*day=1'$"):
        list_files(folder)


def test_a_column_that_only_a_folders_name_has(folder: Path) -> None:
    rows = {"user_id": np.arange(10) % 3, "score": np.linspace(0, 1, 10)}
    (folder / "label=1").mkdir()
    pq.write_table(pa.table(rows), folder / "label=1" / "part-0.parquet")
    told = r"label=1/part-0.parquet: only its folder's name has the label 'label'; write a column of it into the file$"
    with pytest.raises(UserError, match=told):
        find_predictions(folder, ColumnNames())


def test_what_other_writers_make_of_the_same_rows(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    users, scores = rng.integers(1, 80, 1000), np.round(rng.random(1000), 3).astype(np.float32)
    labels = (rng.random(1000) < scores).astype(np.int8)
    names = np.array([f"user-{user}-é" for user in users])
    gaps = rng.random(1000) < 0.5

    def figures(user: Any = names, label: Any = labels, score: Any = scores, **options: Any) -> dict[str, Any]:
        pq.write_table(pa.table({"user_id": user, "label": label, "score": score}), tmp_path / "rows", **options)
        predictions = find_predictions(tmp_path / "rows", ColumnNames())
        return evaluate_predictions(predictions, job=SerialJob(), progress=False)["tasks"]["label"]

    plain = figures()
    assert plain["users_scored"] > 60
    written = [
        figures(pa.array(names).dictionary_encode(), labels.astype(bool), row_group_size=70),
        figures(pa.array(names, pa.large_string()), labels.astype(np.uint8), data_page_version="2.0"),
        figures(pa.array(names).cast(pa.binary()), labels.astype(np.uint64), compression="zstd", write_page_index=True),
        figures(pa.array(names, pa.string_view()), score=scores.astype(np.float64)),
    ]
    for found in written:
        assert (found["auc"], found["uauc"], found["rows"]) == (plain["auc"], plain["uauc"], 1000)
    nan, null = figures(label=np.where(gaps, np.nan, labels)), figures(label=pa.array(labels, mask=gaps))
    assert nan == null and nan["without_label"] == gaps.sum()
    uuids = pa.array([bytes(15) + bytes([user]) for user in users], pa.uuid())
    for column, value in (
        ("label", pa.array(labels).cast(pa.decimal128(5, 0))),
        ("score", pa.array(scores).cast(pa.decimal128(9, 3))),
        ("user", uuids),
    ):
        with pytest.raises(UserError, match=rf"/rows: column '{column}.*' is (decimal|extension).*--{column}$"):
            figures(**{column: value})
