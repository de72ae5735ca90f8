"""The report of a made-up run: its figures, its gaps, its safety."""

import json
import re
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from rankmixer_dist import small_file
from rankmixer_dist.config.yaml_text import SECTIONS
from rankmixer_dist.errors import UserError
from rankmixer_dist.metrics import TaskMetrics
from rankmixer_dist.report.curves import prediction_curves, roc_curve, smoothed, thinned
from rankmixer_dist.report.formats import count, flops, gap, rank_ranges, scaled, seconds, size
from rankmixer_dist.report.inputs import read_run
from rankmixer_dist.report.page import render_report
from rankmixer_dist.report.training_log import read_log

TASKS = {"finish": 0.4, "like": 0.02}


def write_config(run_dir: Path, **changes: Any) -> None:
    keys = {"name": "demo-run", "seed": 17} | {section: {} for section in SECTIONS} | changes
    (run_dir / "config.yaml").write_text("".join(f"{key}: {json.dumps(value)}\n" for key, value in keys.items()))


def log_line(step: int, **changes: Any) -> dict[str, Any]:
    return {
        "step": step,
        "epoch": step // 500,
        "rows": step * 512,
        "loss": 1.5 / (1 + step / 100),
        "loss_per_task": dict.fromkeys(TASKS, 1.0 / (1 + step / 100)),
        "lr": 1e-3,
        "sparse_lr": 2e-2,
        "samples_per_s": 12_340.0,
        "mfu": 0.321,
        "data_wait_s": 0.01,
        "sparse_s": 0.03,
        "dense_s": 0.05,
        "comm_s": 0.01,
        "mem_gb": 1.5,
    } | changes


def write_log(run_dir: Path, lines: list[dict[str, Any]]) -> None:
    (run_dir / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))


def write_plan(run_dir: Path, *, num_tables: int = 3, world_size: int = 2) -> None:
    tables = [
        {
            "name": f"table_{index}",
            "rows": 1000 * (index + 1),
            "dim": 16,
            "module": "bags" if index % 2 else "sequences",
            "features": [f"feature_{index}"],
            "sharding": "row_wise",
            "compute_kernel": "fused",
            "ranks": list(range(world_size)),
            "bytes": 64_000 * (index + 1) * world_size,
            "bytes_per_rank": [64_000 * (index + 1)] * world_size,
            "reason": f"planner's best for table {index}",
        }
        for index in range(num_tables)
    ]
    dense = {"parameters": 107_000_000, "flops_per_row_forward": 214_000_000, "flops_per_row_train": 642_000_000}
    plan = {
        "world_size": world_size,
        "tables": tables,
        "bytes_per_rank": np.sum([table["bytes_per_rank"] for table in tables], axis=0).tolist(),
        "dense": dense,
    }
    (run_dir / "plan.json").write_text(json.dumps(plan))


def write_evaluation(run_dir: Path, *, rows: int = 4000) -> dict[str, Any]:
    """Predictions in two files and the eval.json that follows from them."""
    rng = np.random.default_rng(11)
    columns: dict[str, np.ndarray] = {
        "row_id": np.arange(rows),
        "user_id": rng.integers(0, 200, rows),
        "timestamp": np.arange(rows),
    }
    tasks = {}
    for task, rate in TASKS.items():
        probability = 1 / (1 + np.exp(-(np.log(rate / (1 - rate)) + rng.normal(size=rows))))
        labels = rng.random(rows) < probability
        columns[f"label_{task}"] = labels.astype(np.float32)
        columns[f"score_{task}"] = probability.astype(np.float32)
        metrics = TaskMetrics()
        metrics.update(columns[f"score_{task}"], labels, columns["user_id"])
        tasks[task] = dict(metrics.compute())
    tasks["finish"]["reachable"] = {"auc": 0.9, "uauc": 0.8}
    (run_dir / "predictions").mkdir()
    table = pa.table(columns)
    pq.write_table(table.slice(0, 1500), run_dir / "predictions" / "part-0.parquet")
    pq.write_table(table.slice(1500), run_dir / "predictions" / "part-1.parquet")
    evaluation = {"rows": rows, "split": "test", "checkpoint": "checkpoints/step-0000900", "tasks": tasks}
    (run_dir / "eval.json").write_text(json.dumps(evaluation))
    return evaluation


@pytest.fixture
def full_run(tmp_path: Path) -> Path:
    write_config(tmp_path)
    write_log(tmp_path, [log_line(step) for step in range(10, 1000, 10)])
    write_plan(tmp_path)
    write_evaluation(tmp_path)
    return tmp_path


class OutsideReferences(HTMLParser):
    """Collects everything that would make a browser fetch or run something, and checks that tags pair up."""

    VOID = frozenset({"meta", "br"})

    def __init__(self) -> None:
        super().__init__()
        self.found: list[str] = []
        self.open_tags: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        if tag not in self.VOID:
            self.open_tags.append(tag)
        if tag in {"script", "link", "img", "iframe", "object", "embed"}:
            self.found.append(tag)
        for name, value in attrs:
            if name in {"src", "href", "xlink:href", "action", "data"} and not (value or "").startswith("#"):
                self.found.append(f"{tag} {name}={value}")

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.handle_starttag(tag, attrs)
        self.open_tags.pop()

    def handle_endtag(self, tag: str) -> None:
        assert self.open_tags.pop() == tag


def rendered(run_dir: Path) -> str:
    return render_report(run_dir).read_text(encoding="utf-8")


def as_text(page: str) -> str:
    without_style = re.sub(r"<style>.*?</style>", "", page, flags=re.DOTALL)
    return " ".join(re.sub(r"<[^>]*>", " ", without_style).split())


def test_page_holds_the_figures_of_the_run(full_run: Path) -> None:
    evaluation = json.loads((full_run / "eval.json").read_text())
    assert render_report(full_run) == full_run / "report.html"
    text = as_text(rendered(full_run))
    mean_auc = np.mean([figures["auc"] for figures in evaluation["tasks"].values()])
    assert f"Mean AUC {mean_auc:.4f}" in text
    assert "Rows trained 507 K 4 K evaluated" in text
    assert "Samples / s 12.3 K" in text and "MFU 32.1 %" in text and "World size 2" in text
    assert "107 M" in text and "642 MFLOP / row" in text
    for figures in evaluation["tasks"].values():
        for name in ("auc", "uauc", "uauc_unweighted", "logloss", "ne", "calibration"):
            assert f"{figures[name]:.4f}" in text
        assert f"{figures['auc_ci95'][0]:.4f} – {figures['auc_ci95'][1]:.4f}" in text
        # The ROC plot's figure is computed from the predictions, the table's read from eval.json.
        assert f"AUC {figures['auc']:.4f}" in text
    finish = evaluation["tasks"]["finish"]
    assert f"0.9000 {gap(finish['auc'] - 0.9)}" in text and f"0.8000 {gap(finish['uauc'] - 0.8)}" in text
    assert "demo-run" in text and "seed 17" in text and "checkpoint step-0000900" in text
    assert "planner's best for table 2" in text.replace("&#39;", "'")
    assert "dense 56 % · 50 ms" in text and "sparse and dense 11 % · 10 ms" in text and "other" not in text
    assert "Peak memory of the logging rank: 1.5 GB." in text


def test_page_is_self_contained_well_formed_and_small(full_run: Path) -> None:
    page = rendered(full_run)
    parser = OutsideReferences()
    parser.feed(page)
    assert parser.found == [] and parser.open_tags == []
    assert not re.search(r"https?://|@import|url\((?!#)", page)
    ids = re.findall(r'\sid="([^"]*)"', page)
    assert len(ids) == len(set(ids)) > 50
    referenced = set(re.findall(r'href="#([^"]*)"|url\(#([^)]*)\)', page))
    assert {a or b for a, b in referenced} <= set(ids)
    assert len(page) < 500_000
    assert [path.name for path in full_run.iterdir() if "partial" in path.name] == []


def test_pictures_take_every_colour_from_the_style_sheet(full_run: Path) -> None:
    pictures = re.findall(r"<svg.*?</svg>", rendered(full_run), flags=re.DOTALL)
    assert len(pictures) == 11
    for picture in pictures:
        assert re.findall(r"#[0-9a-f]{6}\b", picture) == []
        assert "var(--series-" in picture


MISSING = {
    "config.yaml": "No config.yaml",
    "metrics.jsonl": "No metrics.jsonl",
    "plan.json": "No plan.json",
    "eval.json": "No eval.json",
    "predictions": "No predictions/*.parquet",
}


@pytest.mark.parametrize("name", MISSING)
def test_a_missing_input_leaves_one_note_and_the_other_sections(full_run: Path, name: str) -> None:
    (full_run / name).rename(full_run / "elsewhere")
    text = as_text(rendered(full_run))
    assert [note for note in MISSING.values() if note in text] == [MISSING[name]]


def test_an_empty_run_directory_has_a_page(tmp_path: Path) -> None:
    text = as_text(rendered(tmp_path))
    assert tmp_path.name in text and all(note in text for note in MISSING.values())


def test_a_truncated_last_line_is_left_out(full_run: Path) -> None:
    path = full_run / "metrics.jsonl"
    path.write_text(path.read_text() + '{"step": 1000, "loss": 0.')
    log = read_run(full_run).log
    assert log is not None and log.columns["step"][-1] == 990 and len(log.columns["step"]) == 99
    assert "99 log lines" in as_text(rendered(full_run))


def test_a_log_may_be_larger_than_any_other_file(full_run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(small_file, "MAX_BYTES", 10)
    log = read_log(full_run / "metrics.jsonl")
    assert log is not None and len(log.columns["step"]) == 99
    with pytest.raises(UserError, match=r"config\.yaml: [\d,]+ bytes; a file of its kind has less than 10"):
        read_run(full_run)


def test_a_broken_line_elsewhere_is_an_error_with_its_number(full_run: Path) -> None:
    lines = (full_run / "metrics.jsonl").read_text().splitlines()
    lines[4] = lines[4][:20]
    (full_run / "metrics.jsonl").write_text("\n".join(lines))
    with pytest.raises(UserError, match="line 5 is not JSON"):
        render_report(full_run)


def test_a_resumed_run_shows_the_later_line_of_each_step(tmp_path: Path) -> None:
    write_log(tmp_path, [log_line(step, loss=9.0) for step in (10, 20, 30)])
    with (tmp_path / "metrics.jsonl").open("a") as file:
        file.writelines(json.dumps(log_line(step, loss=1.0)) + "\n" for step in (20, 30, 40))
    log = read_run(tmp_path).log
    assert log is not None
    assert log.columns["step"].tolist() == [10, 20, 30, 40] and log.columns["loss"].tolist() == [9, 1, 1, 1]


def test_rows_of_unknown_label_are_in_no_curve(full_run: Path) -> None:
    whole = read_run(full_run).predictions
    assert whole is not None
    expected = prediction_curves(whole.batches("like"))
    path = full_run / "predictions" / "part-0.parquet"
    table = pq.read_table(path)
    extra = table.slice(0, 100).set_column(
        table.schema.get_field_index("label_like"), "label_like", pa.array([float("nan")] * 100, pa.float32())
    )
    pq.write_table(pa.concat_tables([table, extra]), path)
    found = read_run(full_run).predictions
    assert found is not None
    curves = prediction_curves(found.batches("like"))
    assert (curves.rows, curves.positives, curves.auc) == (expected.rows, expected.positives, expected.auc)
    assert prediction_curves(found.batches("finish")).rows == expected.rows + 100


def test_nulls_in_the_log(tmp_path: Path) -> None:
    unknown = dict.fromkeys(("mfu", "comm_s", "sparse_lr", "mem_gb"))
    write_log(tmp_path, [log_line(step, **unknown) for step in (10, 20)])
    text = as_text(rendered(tmp_path))
    assert "MFU –" in text and "collectives" not in text and "dense 56 %" in text


def test_time_that_no_part_explains_is_other(tmp_path: Path) -> None:
    write_log(tmp_path, [log_line(step, step_s=0.2) for step in (10, 20)])
    text = as_text(rendered(tmp_path))
    assert "other 55 % · 110 ms" in text and "dense 25 % · 50 ms" in text


def test_waiting_for_checkpoints_is_a_part_of_its_own(tmp_path: Path) -> None:
    waited = {10: 0.0, 20: 0.5, 25: 0.25}
    write_log(tmp_path, [log_line(step, step_s=0.2, checkpoint_wait_s=seconds) for step, seconds in waited.items()])
    text = as_text(rendered(tmp_path))
    # 0, 50 and 50 ms a step
    assert "waiting for checkpoints 17 % · 33.3 ms" in text and "other 38 % · 76.7 ms" in text
    assert "Training waited 750 ms for checkpoints in all, at most 500 ms (in the line of step 20)." in text
    write_log(tmp_path, [log_line(step, step_s=0.2, checkpoint_wait_s=0.0) for step in waited])
    text = as_text(rendered(tmp_path))
    assert "other 55 %" in text and "waiting for checkpoints" not in text and "Training waited" not in text


def test_steps_left_out_are_told_and_their_lines_have_no_loss(tmp_path: Path) -> None:
    nothing = {"loss": None, "loss_per_task": dict.fromkeys(TASKS), "samples_per_s": 0.0, "mfu": 0.0}
    lines = [log_line(10, skipped_steps=0), log_line(20, skipped_steps=10, **nothing), log_line(30, skipped_steps=3)]
    write_log(tmp_path, lines)
    text = as_text(rendered(tmp_path))
    assert "Steps left out because their loss was not finite: 13, the last in the line of step 30." in text
    assert "nan" not in text
    write_log(tmp_path, [log_line(1, skipped_steps=1, **nothing)])
    assert "Throughput" in as_text(rendered(tmp_path))


def test_a_loss_that_left_its_range_is_told(tmp_path: Path) -> None:
    write_log(tmp_path, [log_line(step, tasks_out_of_range=tasks) for step, tasks in ((10, 0), (20, 1), (30, 2))])
    told = f"The loss of up to 2 of {len(TASKS)} tasks left its range"
    text = as_text(rendered(tmp_path))
    assert told in text and "in 2 of 3 lines, from step 20 to 30." in text
    write_log(tmp_path, [log_line(step, tasks_out_of_range=0) for step in (10, 20)])
    assert "left its range" not in as_text(rendered(tmp_path))


def test_checkpoints_that_failed_are_told(tmp_path: Path) -> None:
    write_log(tmp_path, [log_line(step, failed_checkpoints=number) for step, number in ((10, 1), (20, 2), (30, 0))])
    assert "were not finite: 3, the last in the line of step 20." in as_text(rendered(tmp_path))
    write_log(tmp_path, [log_line(step, failed_checkpoints=0) for step in (10, 20)])
    assert "could not be saved" not in as_text(rendered(tmp_path))


def test_one_log_line_without_any_figure(tmp_path: Path) -> None:
    write_log(tmp_path, [{"step": 1}])
    assert "1 log line up to step 1." in as_text(rendered(tmp_path)) and "<svg" not in rendered(tmp_path)


def test_text_is_escaped_everywhere(full_run: Path) -> None:
    attack = '</pre><script>alert("x")</script>$\\frac{'
    write_config(full_run, name=attack)
    write_log(full_run, [log_line(step, loss_per_task={attack: 1.0}) for step in (10, 20)])
    evaluation = json.loads((full_run / "eval.json").read_text())
    evaluation["tasks"] = {attack: evaluation["tasks"]["finish"]}
    evaluation["split"] = evaluation["checkpoint"] = attack
    (full_run / "eval.json").write_text(json.dumps(evaluation))
    plan = json.loads((full_run / "plan.json").read_text())
    for table in plan["tables"]:
        table.update(
            dict.fromkeys(("name", "module", "sharding", "compute_kernel", "reason"), attack), features=[attack]
        )
    (full_run / "plan.json").write_text(json.dumps(plan))
    for part in (full_run / "predictions").iterdir():
        table = pq.read_table(part)
        pq.write_table(table.rename_columns([name.replace("finish", attack) for name in table.column_names]), part)
    page = rendered(full_run)
    assert page.count("&lt;script&gt;") > 20
    parser = OutsideReferences()
    parser.feed(page)
    assert parser.found == [] and parser.open_tags == []


def test_undefined_figures_are_dashes(full_run: Path) -> None:
    empty = TaskMetrics().compute()
    (full_run / "eval.json").write_text(json.dumps({"rows": 0, "tasks": {"finish": empty}}))
    text = as_text(rendered(full_run))
    assert "Mean AUC –" in text and "finish – – – –" in text


def test_a_task_with_one_class_has_no_curves(tmp_path: Path) -> None:
    (tmp_path / "predictions").mkdir()
    columns = {"score_finish": np.full(5, 0.5, np.float32), "label_finish": np.zeros(5, np.float32)}
    pq.write_table(pa.table(columns), tmp_path / "predictions" / "part-0.parquet")
    assert "All rows have the same label" in as_text(rendered(tmp_path))


def test_many_tables_share_one_legend_entry(full_run: Path) -> None:
    write_plan(full_run, num_tables=40, world_size=64)
    text = as_text(rendered(full_run))
    assert "32 smaller tables" in text and "40 tables over 64 ranks" in text
    assert "fullest rank holds 1.00x the mean" in text


def test_no_such_directory(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="no such run directory"):
        render_report(tmp_path / "nowhere")


def test_a_failed_report_leaves_the_old_page(full_run: Path) -> None:
    before = rendered(full_run)
    (full_run / "eval.json").write_text("{")
    with pytest.raises(UserError, match="eval.json: not JSON"):
        render_report(full_run)
    assert (full_run / "report.html").read_text() == before


def test_thinned_roc_follows_the_whole_one() -> None:
    rng = np.random.default_rng(12)
    labels = rng.random(200_000) < 0.3
    scores = np.round(rng.normal(size=200_000) + labels, 3).astype(np.float32)
    curve = roc_curve(scores, labels)
    assert 300 < len(curve.true_positive_rate) <= 400
    for end, expected in ((0, 0.0), (-1, 1.0)):
        assert curve.false_positive_rate[end] == curve.true_positive_rate[end] == expected
    for index in range(0, len(curve.true_positive_rate), 37):
        # Each point is a threshold of the whole curve: its rates are those of some score.
        threshold = np.quantile(scores[~labels], 1 - curve.false_positive_rate[index], method="higher")
        near = np.abs(curve.true_positive_rate[index] - (scores[labels] >= threshold).mean())
        assert near < 3e-3
    area = np.trapezoid(curve.true_positive_rate, curve.false_positive_rate)
    metrics = prediction_curves([(1 / (1 + np.exp(-scores)), labels)])
    assert area == pytest.approx(metrics.auc, abs=1e-4)


def test_reliability_points_join_thin_bins() -> None:
    rng = np.random.default_rng(13)
    probability = 1 / (1 + np.exp(-rng.normal(-4, 1, 30_000)))
    labels = rng.random(30_000) < probability
    points = prediction_curves([(probability[:9], labels[:9]), (probability[9:], labels[9:])]).reliability
    assert points is not None
    assert points.rows.sum() == 30_000 and (points.rows * points.observed).sum() == pytest.approx(labels.sum())
    assert (points.rows * points.observed).min() > 9.99 and len(points.rows) > 5
    assert ((points.observed_low < points.observed) & (points.observed < points.observed_high)).all()
    inside = (points.observed_low <= points.predicted) & (points.predicted <= points.observed_high)
    assert inside.mean() > 0.7


def test_smoothing_looks_both_ways_and_skips_gaps() -> None:
    assert smoothed(np.array([2.0, 2.0, np.nan, 2.0]), 3.0) == pytest.approx(2.0)
    assert smoothed(np.array([1.0, np.nan, 0.0]), 1.0).tolist() == pytest.approx([0.8, 0.5, 0.2])
    assert np.isnan(smoothed(np.array([np.nan, np.nan]), 1.0)).all()
    assert thinned(10_001, 500)[[0, -1]].tolist() == [0, 10_000] and len(thinned(10_001, 500)) == 500
    assert thinned(3, 500).tolist() == [0, 1, 2]


def test_formats() -> None:
    assert [scaled(value) for value in (0.0, 7, 999.4, 999.6, 12_345, 1.07e9, 2.5e12)] == [
        "0",
        "7",
        "999",
        "1 K",
        "12.3 K",
        "1.07 B",
        "2.5 T",
    ]
    assert [size(value) for value in (12, 2048, 1.5 * 2**20, 1023.9 * 2**20)] == ["12 B", "2 KiB", "1.5 MiB", "1 GiB"]
    assert [flops(value) for value in (12, 214e6, 1.2e9)] == ["12 FLOP", "214 MFLOP", "1.2 GFLOP"]
    assert [gap(value) for value in (-0.0123, 0.02, None)] == ["−0.0123", "+0.0200", "–"]
    assert [seconds(value) for value in (2.5, 0.05, None)] == ["2.5 s", "50 ms", "–"]
    assert rank_ranges([3, 0, 1, 2, 6]) == "0–3, 6" and count(1234567) == "1\u202f234\u202f567"


def test_the_rank_that_holds_the_others_up_stands_beside_the_median_one(tmp_path: Path) -> None:
    write_plan(tmp_path, world_size=2)
    plan = json.loads((tmp_path / "plan.json").read_text()) | {"hosts": {"left": [0], "right": [1]}}
    (tmp_path / "plan.json").write_text(json.dumps(plan))
    slow = {"median": 0.001, "max": 0.6, "rank": 1, "host": "right"}
    write_log(tmp_path, [log_line(step, ranks={"data_wait_s": slow}) for step in (10, 20, 30)])
    text = as_text(rendered(tmp_path))
    assert "Longest data wait / step 600 ms rank 1 on right; median rank 1 ms" in text
    assert "of tables on 2 hosts" in text and "Slowest rank's own step" not in text
