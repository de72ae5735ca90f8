"""The report's section on experts: of a made-up run that has some, of one that routes by softmax, of none."""

import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from rankmixer_dist.report.expert_plots import block_plots, lambda_plot, path_gap_plot
from rankmixer_dist.report.formats import signed_percent
from rankmixer_dist.report.page import render_report
from rankmixer_dist.report.training_log import TrainingLog, read_log

STEPS = (10, 20, 30)
EXCHANGE = {"seconds": 0.02, "bytes_forward": 2048.0, "bytes_backward": 1024.0, "count": 7.0}


def share(block: int, token: float) -> float:
    """Active experts of a token, different from all others'."""
    return round(0.05 + 0.2 * block + 0.03 * token, 4)


def routing(*, num_blocks: int = 2, num_tokens: int = 4, **changes: Any) -> dict[str, Any]:
    """As one line of metrics.jsonl has it; tokens in an order that is not theirs, as JSON may have them."""
    places = [(block, token) for block in range(num_blocks) for token in reversed(range(num_tokens))]
    return {
        "active_ratio": float(np.mean([share(*place) for place in places])),
        "dead_experts": 0,
        "gate_scale": 0.5125,
        "active": {f"{block}.{token}": share(block, token) for block, token in places},
        "mu": 1e-6,
        "lambda": 3.25e-4,
        "target": 0.125,
        "path_gap": 0.0123,
    } | changes


def write_run(run_dir: Path, lines: list[dict[str, Any]]) -> None:
    """A log whose lines have these figures beside step and epoch."""
    lines = [{"step": step, "epoch": 0, "step_s": 0.1} | line for step, line in zip(STEPS, lines, strict=False)]
    (run_dir / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))


def logged(run_dir: Path) -> TrainingLog:
    """What was written."""
    log = read_log(run_dir / "metrics.jsonl")
    assert log is not None
    return log


def write_evaluation(run_dir: Path, **routing: Any) -> None:
    """eval.json of one task."""
    figures = {"auc": 0.7, "uauc": 0.6, "uauc_unweighted": 0.5, "logloss": 0.303, "ne": 0.9, "calibration": 1.0}
    figures |= {"auc_ci95": [0.6, 0.8], "positives": 5, "users_scored": 3}
    content = {"rows": 100, "split": "test", "checkpoint": "c", "tasks": {"finish": figures}, "routing": routing}
    (run_dir / "eval.json").write_text(json.dumps(content))


def section(run_dir: Path) -> str:
    """The markup of the section; empty where the page has none."""
    page = render_report(run_dir).read_text(encoding="utf-8")
    found = re.search(r"<h2>Experts</h2>.*?(?=<h2>)", page, flags=re.DOTALL)
    return "" if found is None else found[0]


def as_text(markup: str) -> str:
    return " ".join(re.sub(r"<[^>]*>", " ", markup).split())


def line_height(svg: str, color: str) -> float:
    """Of the one level line in this colour, in px from the top of the picture."""
    paths = re.findall(rf'<path d="([^"]*)"[^>]*?style="fill: none;[^"]*? stroke: var\(--{color}\)', svg)
    heights = [{float(y) for y in re.findall(r"[ML] \S+ (\S+)", path)} for path in paths]
    assert len(heights) == len(heights[0]) == 1
    return heights[0].pop()


def test_tokens_of_the_log_are_in_their_order(tmp_path: Path) -> None:
    write_run(tmp_path, [{"routing": routing(num_tokens=11)}, {}, {"routing": {}}])
    active = logged(tmp_path).active_per_block
    assert [block.shape for block in active] == [(11, 3), (11, 3)]
    for block, active_TX in enumerate(active):
        assert active_TX[:, 0].tolist() == [share(block, token) for token in range(11)]
        assert np.isnan(active_TX[:, 1:]).all()


def test_the_section_holds_the_figures_of_the_log(tmp_path: Path) -> None:
    dead = [{"dead_experts": 0}, {"dead_experts": 7, "path_gap": 0.0323}, {"dead_experts": 2}]
    write_run(tmp_path, [{"routing": routing(**changes), "exchange": EXCHANGE} for changes in dead])
    text = as_text(section(tmp_path))
    assert "Active experts 19.5 % target 12.5 %" in text
    assert "Dead experts 2 at most 7, at step 20" in text and "Gate scale 0.5125" in text
    assert "Exchange / step 20 ms 20 % of its 100 ms" in text
    assert "Sent / step 3 KiB 2 KiB forward, 1 KiB back" in text
    assert (
        "lambda, closing now 0.000325" in text
        and "mu, opening now 1e-06" in text
        and "at most +3.23 % (at step 20)" in text
    )
    # 1.23, 3.23 and 1.23 with weights 1/4, 1/2 and 1
    assert "gap +1.80 %" in text
    for block, mean in enumerate(("9.5 %", "29.5 %")):
        assert f"Active experts, block {block} mean {mean} target, dashed 12.5 %" in text
        assert all(f"token {token} {100 * share(block, token):.3g} %" in text for token in range(4))


def test_lines_lie_where_their_figures_are_on_one_scale(tmp_path: Path) -> None:
    write_run(tmp_path, [{"routing": routing()} for _ in STEPS])
    drawn = []
    for block, plot in enumerate(block_plots(logged(tmp_path))):
        shares = {f"series-{token}": share(block, token) for token in range(4)}
        shares |= {"ink": share(block, 1.5), "muted": 0.125}
        drawn += [(value, line_height(plot.svg, color)) for color, value in shares.items()]
    values, heights = np.array(drawn).T
    slope, start = np.polyfit(values, heights, 1)
    assert slope < -400  # px from no expert to all, upwards
    assert np.abs(start + slope * values - heights).max() < 0.1  # px; saw 0.04, of numbers written with four digits


def test_numbers_at_the_ends_of_lines_do_not_collide(tmp_path: Path) -> None:
    write_run(tmp_path, [{"routing": routing(num_blocks=1, num_tokens=40)}])
    (plot,) = block_plots(logged(tmp_path))
    texts = re.findall(r'<text style="[^"]*var\(--series-0\)[^"]*"[^>]*? y="([^"]*)"[^>]*>(\d+)</text>', plot.svg)
    numbers = [int(number) for _, number in texts]
    assert {0, 39} <= set(numbers) and 8 < len(numbers) < 40
    heights = sorted(float(y) for y, _ in texts)
    assert min(np.diff(heights)) > 10.5  # px, the size of the type
    assert "token" not in as_text(" ".join(entry.text for entry in plot.legend))


def test_softmax_has_no_lambda_no_gap_and_no_target(tmp_path: Path) -> None:
    figures = {key: value for key, value in routing(path_gap=0.0).items() if key not in ("lambda", "mu", "target")}
    write_run(tmp_path, [{"routing": figures}, {"routing": figures}])
    write_evaluation(tmp_path, active_ratio=0.25, dead_experts=3, gate_scale=0.4)
    text = as_text(section(tmp_path))
    assert "block 1 mean 29.5 %" in text and "Dead experts 0 every one served a row" in text
    assert "Evaluated on test: 25 % of the experts active, 3 dead, open gates 0.4000 on average." in text
    assert not any(word in text for word in ("target", "ambda", "as trained", "xchange"))


def test_the_paths_of_an_evaluated_run_stand_side_by_side(tmp_path: Path) -> None:
    trained = {"finish": {"auc": 0.71, "logloss": 0.3, "served_gap": 0.01}}
    write_evaluation(tmp_path, active_ratio=0.25, dead_experts=0, gate_scale=0.4, trained_path=trained)
    assert "finish 0.7000 0.7100 −0.0100 0.3030 0.3000 +1.00 %" in as_text(section(tmp_path))


def test_figures_that_are_null_leave_the_rest(tmp_path: Path) -> None:
    unknown = routing(gate_scale=None, path_gap=None, active=dict.fromkeys(routing()["active"]))
    write_run(tmp_path, [{"routing": unknown}])
    undefined = {"finish": dict.fromkeys(("auc", "logloss", "served_gap"))}
    write_evaluation(tmp_path, active_ratio=None, dead_experts=0, gate_scale=None, trained_path=undefined)
    text = as_text(section(tmp_path))
    assert "Gate scale –" in text and "block 0 mean – target" in text and "nan" not in text
    assert "Lambda and what it steers" in text and "Loss as served" not in text
    assert "finish 0.7000 – – 0.3030 – –" in text


def test_colours_are_the_page_s_and_ids_are_unique(tmp_path: Path) -> None:
    write_run(tmp_path, [{"routing": routing()}, {"routing": routing()}])
    markup = section(tmp_path)
    assert markup.count("<svg") == 4 and not re.search(r"#[0-9a-f]{6}\b", markup)
    ids = re.findall(r'\sid="([^"]*)"', markup)
    assert len(ids) == len(set(ids)) > 50


@pytest.mark.filterwarnings("error")  # matplotlib warns of an axis without extent
@pytest.mark.parametrize("value", [1e-8, 1.0, 2.5])
def test_lambda_that_never_moved_has_an_axis(tmp_path: Path, value: float) -> None:
    write_run(tmp_path, [{"routing": routing(**{"mu": value, "lambda": value})}])
    exponent = int(np.floor(np.log10(value)))
    assert {f"1e{exponent}", f"1e{exponent + 1}"} <= set(as_text(lambda_plot(logged(tmp_path)).svg).split())


def test_a_run_without_experts_has_no_section(tmp_path: Path) -> None:
    write_run(tmp_path, [{"loss": 1.0}, {"loss": 0.9}])
    assert section(tmp_path) == ""


def test_gap_of_zero_and_below(tmp_path: Path) -> None:
    assert [signed_percent(value) for value in (-0.01234, 0.0, None)] == ["−1.23 %", "+0.00 %", "–"]
    write_run(tmp_path, [{"routing": routing(path_gap=-0.01)}])
    plot = path_gap_plot(logged(tmp_path))
    assert plot.legend[0].figure == "−1.00 %" and "at most −1.00 % (at step 10)" in plot.note
