"""Predictions that make no sense end `evaluate.py --predictions` with one line that names the file and what to mend."""

import json
import math
import os
import signal
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from data_pipeline.hangup import signals_unwind
from data_pipeline.job import SerialJob
from data_pipeline.predictions import ColumnNames, evaluate_predictions, figures_path, find_predictions, write_figures
from rankmixer_dist.errors import UserError
from tests.integration.test_bad_input import refuse


def good_rows(rows: int = 100) -> dict[str, Any]:
    """Columns of scored rows, weights among them."""
    rng = np.random.default_rng(0)
    columns = {"user_id": rng.integers(0, 9, rows), "label": rng.integers(0, 2, rows).astype(np.float32)}
    return columns | {"score": rng.random(rows).astype(np.float32), "weight": rng.random(rows)}


def write(folder: Path, columns: dict[str, Any], *, name: str = "part-1.parquet") -> Path:
    """A file of row groups of 30 rows, beside a good one."""
    folder.mkdir(exist_ok=True)
    pq.write_table(pa.table(good_rows()), folder / "part-0.parquet", row_group_size=30)
    pq.write_table(pa.table(columns), folder / name, row_group_size=30)
    return folder


def evaluate(folder: Path, **options: Any) -> dict[str, Any]:
    names = ColumnNames(**{name: options.pop(name) for name in ("user", "label", "score", "weight") if name in options})
    return evaluate_predictions(find_predictions(folder, names), job=SerialJob(), progress=False, **options)


def with_value(name: str, row: int, value: Any) -> dict[str, Any]:
    """Good rows but for one value."""
    columns = good_rows()
    if value is None:
        columns[name] = [None if place == row else each for place, each in enumerate(columns[name].tolist())]
        if name == "score":
            columns[name] = pa.array(columns[name], pa.float32())
    else:
        columns[name][row] = value
    return columns


@pytest.mark.parametrize(
    ("name", "value", "told"),
    [
        ("label", 2, "column 'label' is 2.0; a label is 0 or 1, or null or NaN where it is not known"),
        ("label", -1, "column 'label' is -1.0; a label is 0 or 1"),
        ("label", np.inf, "column 'label' is inf; a label is 0 or 1"),
        ("score", np.nan, "column 'score' is nan; a score is a probability in [0, 1]"),
        ("score", -np.inf, "column 'score' is -inf; a score is a probability in [0, 1]"),
        ("score", 1.5, "column 'score' is 1.5; a score is a probability in [0, 1]"),
        ("score", None, "column 'score' is null; every row needs a score"),
        ("user_id", None, "column 'user_id' is null; every row needs its user"),
        (
            "weight",
            -1,
            "column 'weight' is -1.0; a weight is 0 or between 2**-30 and 2**20; multiply all by one number",
        ),
        (
            "weight",
            np.nan,
            "column 'weight' is nan; a weight is 0 or between 2**-30 and 2**20; multiply all by one number",
        ),
        (
            "weight",
            None,
            "column 'weight' is nan; a weight is 0 or between 2**-30 and 2**20; multiply all by one number",
        ),
    ],
)
@pytest.mark.parametrize("row", [0, 64, 99])
def test_a_row_that_makes_no_sense(name: str, value: Any, told: str, row: int, tmp_path: Path) -> None:
    folder = write(tmp_path / "p", with_value(name, row, value))
    with pytest.raises(UserError) as caught:
        evaluate(folder, weight="weight")
    where = f"{folder}/part-1.parquet: row group {row // 30}, row {row % 30} (from 0): "
    assert str(caught.value).startswith(where + told)


@pytest.mark.parametrize(
    ("change", "names", "told"),
    [
        ({"user_id": "userid"}, {}, "has no column 'user_id'; did you mean 'userid'?; name the user by --user"),
        ({"label": "labels"}, {}, "has no column 'label'; did you mean 'labels'?; name the label by --label"),
        ({"score": "pctr"}, {}, "has no column 'score'; name the score by --score"),
        ({"weight": "w"}, {"weight": "weight"}, "has no column 'weight'"),
    ],
)
def test_a_missing_column(change: dict[str, str], names: dict[str, str], told: str, tmp_path: Path) -> None:
    columns = {change.get(name, name): column for name, column in good_rows().items()}
    folder = write(tmp_path / "p", columns)
    with pytest.raises(UserError) as caught:
        evaluate(folder, **names)
    assert str(caught.value).startswith(f"{folder}/part-1.parquet: {told}")


@pytest.mark.parametrize(
    ("name", "column", "told"),
    [
        ("score", np.ones(100, np.int64), "column 'score' is int64, but a score is a float32 or float64 in [0, 1]"),
        (
            "label",
            ["yes"] * 100,
            "column 'label' is string, but a label is a number, 0 or 1; name the label by --label",
        ),
        ("user_id", np.ones(100), "column 'user_id' is double, but user ids are integers or strings"),
        ("user_id", ["u"] * 100, "column 'user_id' holds strings, in "),
        ("weight", ["1"] * 100, "column 'weight' is string, but a weight is a number"),
    ],
)
def test_a_column_of_another_type(name: str, column: Any, told: str, tmp_path: Path) -> None:
    folder = write(tmp_path / "p", good_rows() | {name: column})
    with pytest.raises(UserError) as caught:
        evaluate(folder, weight="weight")
    assert str(caught.value).startswith(f"{folder}/part-1.parquet: {told}")


def test_a_column_that_is_there_twice(tmp_path: Path) -> None:
    columns = good_rows()
    table = pa.Table.from_arrays(
        [pa.array(column) for column in columns.values()], names=["user_id", "label", "score", "label"]
    )
    pq.write_table(table, tmp_path / "scored.parquet")
    with pytest.raises(UserError, match=r"scored.parquet: has 2 columns 'label'; name another label by --label$"):
        evaluate(tmp_path / "scored.parquet")


def test_a_file_that_is_cut_or_damaged(tmp_path: Path) -> None:
    folder = write(tmp_path / "p", good_rows(3000))
    path = folder / "part-1.parquet"
    content = path.read_bytes()
    for damage in (content[:-10], content[: len(content) // 2], b"", b"no parquet"):
        path.write_bytes(damage)
        with pytest.raises(
            UserError, match=r"part-1.parquet: not a readable Parquet file: .*; write it again or remove it"
        ):
            evaluate(folder)
    path.unlink()
    path.symlink_to("nowhere")
    with pytest.raises(UserError, match=r"part-1.parquet: a link that leads nowhere \(No such .*; mend or remove it"):
        evaluate(folder)
    path.unlink()
    # The footer is whole, the pages of a row group are not.
    path.write_bytes(content)
    third = pq.read_metadata(path).row_group(2).column(0)
    start = third.dictionary_page_offset or third.data_page_offset
    path.write_bytes(
        content[:start] + bytes(third.total_compressed_size) + content[start + third.total_compressed_size :]
    )
    with pytest.raises(
        UserError, match=r"part-1.parquet: row group 2 cannot be read; write the file again or remove it: "
    ):
        evaluate(folder)


def test_no_rows_and_no_files(tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    pq.write_table(pa.table({name: column[:0] for name, column in good_rows().items()}), tmp_path / "none.parquet")
    for path, told in ((tmp_path / "none.parquet", "holds no rows"), (tmp_path / "empty", r"holds no \*.parquet")):
        with pytest.raises(UserError, match=f"{path}: {told}$"):
            evaluate(path)
    with pytest.raises(UserError, match=r"nowhere: no such file or folder$"):
        evaluate(tmp_path / "nowhere")


def test_a_folder_that_cannot_be_listed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    # Its path is longer than any may be.
    (tmp_path / "p").mkdir()
    monkeypatch.chdir(tmp_path / "p")
    for _ in range(20):
        os.mkdir("d" * 250)
        os.chdir("d" * 250)
    with pytest.raises(
        UserError, match=r"^--predictions .*/p: cannot be listed, name the folder of the files alone: .*too long"
    ):
        evaluate(tmp_path / "p")
    with pytest.raises(UserError, match=r"^/ has nothing beside it where the figures could go: name a file by --out$"):
        figures_path(Path("/"), None)


@pytest.mark.parametrize("more", [0, 1])
def test_a_task_that_not_all_files_have(more: int, tmp_path: Path) -> None:
    rows = good_rows()
    columns = {"user_id": rows["user_id"], "label_a": rows["label"], "score_a": rows["score"]}
    both = columns | {"label_b": rows["label"], "score_b": rows["score"]}
    for number in (0, 1):
        pq.write_table(pa.table(both if number == more else columns), tmp_path / f"part-{number}.parquet")
    with pytest.raises(UserError, match=rf"part-{1 - more}.parquet: has no column 'label_b'"):
        evaluate(tmp_path)


def test_too_little_memory_and_no_room(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = write(tmp_path / "p", good_rows())
    with pytest.raises(UserError, match=r"^--memory 0.1: a worker needs 0.\d GiB at least$"):
        evaluate(folder, memory_gib=0.1)
    for memory in (math.nan, math.inf, -math.inf):
        with pytest.raises(UserError, match=r"^--memory (nan|-?inf): give a number of GiB, such as 4$"):
            evaluate(folder, memory_gib=memory)
    with pytest.raises(UserError, match=r"^--spill .*nowhere: no such folder$"):
        evaluate(folder, spill=tmp_path / "nowhere")
    monkeypatch.setattr("shutil.disk_usage", lambda _: SimpleNamespace(free=1000))
    with pytest.raises(UserError, match=r"the rows need up to 0.0 GB here, 0.0 GB are free; name another by --spill$"):
        evaluate(folder)


def test_what_is_not_ours_is_not_overwritten(tmp_path: Path) -> None:
    run = write(tmp_path / "predictions", good_rows())
    predictions = find_predictions(run, ColumnNames())
    out = figures_path(run, None)
    assert out == tmp_path / "predictions.eval.json"
    for _ in range(2):
        write_figures(figures_path(run, None), predictions, {"rows": 3})
    assert json.loads(out.read_text())["rows"] == 3
    (tmp_path / "eval.json").write_text('{"rows": 5, "tasks": {}}')
    with pytest.raises(
        UserError, match=r"eval.json holds something else, which is not overwritten; name another file by --out"
    ):
        figures_path(run, tmp_path / "eval.json")
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(UserError, match=r"pipe holds something else"):
        figures_path(run, tmp_path / "pipe")
    with pytest.raises(UserError, match=r"^--out .*x.json: there is no folder "):
        figures_path(run, tmp_path / "no" / "x.json")
    with pytest.raises(UserError, match=r"no/x.json: cannot be written, name another file by --out: .*No such file"):
        write_figures(tmp_path / "no" / "x.json", predictions, {})


def test_the_command_line(launch, tmp_path: Path) -> None:
    refuse(launch.python("launch/evaluate.py"), "name what to evaluate", "--predictions PATH")
    refuse(launch.python("launch/evaluate.py", "a.yaml", "--predictions", "p"), "either", "not both")
    refuse(launch.python("launch/evaluate.py", "a.yaml", "--label", "x"), "--label goes with --predictions")


@pytest.mark.ray
def test_a_bad_row_ends_the_verb(launch, tmp_path: Path) -> None:
    folder = write(tmp_path / "p", with_value("label", 95, 3))
    (tmp_path / "spill").mkdir()
    process = launch.python("launch/evaluate.py", "--predictions", str(folder), "--spill", str(tmp_path / "spill"))
    refuse(process, f"{folder}/part-1.parquet: row group 3, row 5 (from 0): column 'label' is 3.0")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["p", "spill"]
    assert not list((tmp_path / "spill").iterdir())


@pytest.fixture
def hangups_end() -> Iterator[None]:
    """SIGHUP does what it does by default, here and in what is started, though nohup may have started the tests."""
    before = signal.signal(signal.SIGHUP, signal.SIG_DFL)
    yield
    signal.signal(signal.SIGHUP, before)


@pytest.mark.ray
@pytest.mark.usefixtures("hangups_end")
def test_a_terminal_that_is_closed_leaves_no_rows_behind(launch, tmp_path: Path) -> None:
    spill = tmp_path / "spill"
    spill.mkdir()
    path = tmp_path / "scored.parquet"
    pq.write_table(pa.table(good_rows(2_000_000)), path, row_group_size=100_000)
    command = ("launch/evaluate.py", "--predictions", str(path), "--spill", str(spill))
    with launch.started(*command, log=tmp_path / "log") as process:
        while not list(spill.rglob("*.npy")):
            assert process.poll() is None, (tmp_path / "log").read_text()
            time.sleep(0.01)
        process.send_signal(signal.SIGHUP)
        assert process.wait(timeout=60) == 128 + signal.SIGHUP
    assert not list(spill.iterdir())
    assert not (tmp_path / "scored.parquet.eval.json").exists()


class SignalsWhenItGoes:
    """Is told to end where what is raised is swallowed."""

    def __del__(self) -> None:
        os.kill(os.getpid(), signal.SIGHUP)


@pytest.mark.usefixtures("hangups_end")
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
def test_a_signal_inside_a_destructor_ends_the_block_too() -> None:
    with pytest.raises(SystemExit) as caught, signals_unwind():
        SignalsWhenItGoes()  # and it goes
    assert caught.value.code == 128 + signal.SIGHUP


@contextmanager
def more_signals_at_the_end() -> Iterator[None]:
    try:
        yield
    finally:
        for number in (signal.SIGTERM, signal.SIGHUP):
            os.kill(os.getpid(), number)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP])
def test_only_the_first_signal_counts_and_ignored_ones_stay_so(number: signal.Signals) -> None:
    before = signal.getsignal(number)
    try:
        signal.signal(number, signal.SIG_IGN)
        with signals_unwind():
            os.kill(os.getpid(), number)
        signal.signal(number, signal.SIG_DFL)
        with pytest.raises(SystemExit) as caught, signals_unwind(), more_signals_at_the_end():
            os.kill(os.getpid(), number)
        assert caught.value.code == 128 + number
        assert signal.getsignal(number) is signal.SIG_DFL
    finally:
        signal.signal(number, before)
