"""A disk that is full ends in one line; what was there stands, nothing half stays, and the next start goes on."""

import json
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from data_pipeline.job import RayJob, SerialJob
from data_pipeline.predictions import ColumnNames, evaluate_predictions, find_predictions, write_figures
from data_pipeline.preprocess import preprocess
from data_pipeline.streaming.lines import LineFile
from rankmixer_dist.config import load_config
from rankmixer_dist.errors import UserError
from rankmixer_dist.small_file import write_text
from rankmixer_dist.train.evaluate import _publish
from tests.full_disk import Disk, small_disk
from tests.integration.test_bad_predictions import good_rows
from tests.pipeline.stream_harness import WINDOWS, Stream, bring, publish

FULL = r"No space left on device.*\); free some space, or name another place$"
JOBS = pytest.mark.parametrize("job", [SerialJob, pytest.param(RayJob, marks=pytest.mark.ray)])


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[Disk]:
    with small_disk(tmp_path / "disk") as made:
        yield made


@JOBS
def test_preparing(job: Any, small_config: Path, disk: Disk) -> None:
    config = load_config(small_config, [f"data.prepared={disk.folder / 'prepared'}", "data.shard_rows=256"])
    for free in (0, 8192, 40_000, 100_000):
        disk.fill(leave=free)
        with pytest.raises(UserError, match=FULL) as told:
            preprocess(config, progress=False, job=job())
        assert str(disk.folder) in str(told.value) and "\n" not in str(told.value)
        assert disk.names() == []
    disk.free()
    assert preprocess(config, progress=False, job=job()).raw_rows == 3000
    assert disk.names() == ["prepared"]


def test_the_synthetic_log_and_rows_set_aside(small_config: Path, disk: Disk, tmp_path: Path) -> None:
    overrides = [f"source.path={disk.folder / 'raw'}", f"data.prepared={tmp_path / 'prepared'}"]
    for free in (0, 100_000):
        disk.fill(leave=free)
        with pytest.raises(UserError, match=FULL):
            preprocess(load_config(small_config, overrides), progress=False, job=SerialJob())
        assert disk.names() == []
    disk.free()
    preprocess(load_config(small_config, overrides), progress=False, job=SerialJob())
    path = min((disk.folder / "raw").glob("log_*.parquet"))
    table = pq.read_table(path)
    hours = pa.array([31] * table.num_rows, table["hour"].type)
    table = table.set_column(table.column_names.index("hour"), "hour", hours)
    disk.free()
    pq.write_table(table, path)
    disk.fill(leave=8192)
    overrides = [*overrides, f"data.prepared={disk.folder / 'prepared'}", "data.on_bad_row=set_aside"]
    with pytest.raises(UserError, match=FULL):
        preprocess(load_config(small_config, overrides), progress=False, job=SerialJob())
    assert disk.names() == ["raw"]


@JOBS
def test_the_figures_of_predictions(job: Any, disk: Disk, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pq.write_table(pa.table(good_rows(20_000)), tmp_path / "scored.parquet")
    predictions = find_predictions(tmp_path / "scored.parquet", ColumnNames())
    with monkeypatch.context() as patched:
        patched.setattr("shutil.disk_usage", lambda _: SimpleNamespace(free=1 << 40))  # somebody else is faster
        for free in (0, 100_000):
            disk.fill(leave=free)
            with pytest.raises(UserError, match="No space left on device|requested and .* written"):
                evaluate_predictions(predictions, spill=disk.folder, job=job(), progress=False)
            assert disk.names() == []
    out = disk.folder / "figures.json"
    write_text(out, json.dumps({"predictions": "old"}))
    disk.fill()
    with pytest.raises(UserError, match=r"figures.json: cannot be written, name another file by --out: .*No space"):
        write_figures(out, predictions, {"rows": 20_000, "filling": "x" * 10_000})
    assert json.loads(out.read_text()) == {"predictions": "old"} and disk.names() == ["figures.json"]


def test_the_results_of_a_run(disk: Disk) -> None:
    for name in ("predictions", "predictions.partial"):
        (disk.folder / name).mkdir()
        (disk.folder / name / "part-00000.parquet").write_text(name)
    write_text(disk.folder / "eval.json", "old")
    write_text(disk.folder / "report.html", "old")
    before = {path: path.read_text() for path in disk.folder.rglob("*") if path.is_file()}
    disk.fill()
    with pytest.raises(UserError, match=FULL):
        _publish(disk.folder, disk.folder / "predictions.partial", {"rows": 5, "filling": "x" * 10_000})
    with pytest.raises(UserError, match=FULL):
        write_text(disk.folder / "report.html", "x" * 10_000)
    disk.free()
    assert {path: path.read_text() for path in disk.folder.rglob("*") if path.is_file()} == before
    _publish(disk.folder, disk.folder / "predictions.partial", {"rows": 5})
    assert disk.names() == ["eval.json", "predictions", "report.html"]
    assert (disk.folder / "predictions" / "part-00000.parquet").read_text() == "predictions.partial"


def append_for_ever(lines: LineFile, written: list[dict[str, Any]]) -> None:
    while True:
        line = {"number": len(written), "filling": "x" * 50}
        lines.append(line)
        written.append(line)


def test_a_line_that_did_not_fit_is_not_there(disk: Disk) -> None:
    path = disk.folder / "ledger.jsonl"
    lines, written = LineFile(path), []
    for round_ in range(3):
        disk.fill(leave=8192)
        with pytest.raises(UserError, match=r"ledger.jsonl: cannot be written"):
            append_for_ever(lines, written)
        assert [json.loads(each) for each in path.read_text().splitlines()] == written
        if round_ == 1:
            lines.close()
            lines = LineFile(path)
        disk.free()
    lines.append({"last": True})
    lines.close()
    again = LineFile(path)
    assert again.lines == [*written, {"last": True}]
    again.close()


def ending_of(stream: Stream, disk: Disk, *, free: int) -> str | None:
    """What an evaluation says at its end that has so many bytes of disk; None if they are enough."""
    disk.fill(leave=free)
    try:
        stream.evaluate()
    except UserError as error:
        return str(error)
    return None


def test_a_streaming_evaluation_goes_on_from_where_the_disk_was_full(
    days_config: Path, disk: Disk, tmp_path: Path
) -> None:
    calm = Stream(days_config, tmp_path / "calm")
    calm.evaluate(*publish(calm, 1, 2, 3, 4), *bring(calm, calm.shards(*WINDOWS)))
    stream = Stream(days_config, disk.folder / "one")
    for day in (1, 2, 3, 4):
        checkpoint = stream.run_dir / "checkpoints" / f"step-{day:08d}"
        checkpoint.mkdir(parents=True)
        (checkpoint / "weights").write_text(str(day))
    for event in bring(stream, stream.shards(*WINDOWS)):
        event()
    told = [ending_of(stream, disk, free=free) for free in range(0, 160_000, 12_288)]
    ended = [line for line in told if line is not None]
    assert len(ended) > 5 and all("cannot be" in line and "\n" not in line for line in ended)
    assert len({line.split("/one/")[1].split(": ")[0] for line in ended}) > 3, "several files did not fit"
    disk.free()
    stream.evaluate()
    assert stream.final() == calm.final()
    for window in (line["start"] for line in stream.lines()):
        rows = stream.scored_rows(window)
        assert len(rows) == len(set(rows))
