"""What a line of the log becomes on disk and on TensorBoard."""

import json
import math

from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from rankmixer_dist.train.metrics_log import MetricsLog

LINE = {
    "step": 20,
    "loss": 0.5,
    "mfu": None,
    "loss_per_task": {"finish": 0.25, "like": math.nan},
    "routing": {"dead_experts": 3, "active": {"0.0": 0.125, "1.7": 0.75}},
}


def test_figures_of_any_depth_reach_tensorboard_and_json_keeps_the_sections(tmp_path):
    log = MetricsLog(tmp_path, resume_step=0)
    log.write(LINE)
    log.close()
    board = EventAccumulator(str(tmp_path / "tensorboard")).Reload()
    shown = {tag: board.Scalars(tag) for tag in board.Tags()["scalars"]}
    assert {tag: [(event.step, event.value) for event in events] for tag, events in shown.items()} == {
        "loss": [(20, 0.5)],
        "loss_per_task/finish": [(20, 0.25)],
        "routing/dead_experts": [(20, 3)],
        "routing/active/0.0": [(20, 0.125)],
        "routing/active/1.7": [(20, 0.75)],
    }
    written = json.loads((tmp_path / "metrics.jsonl").read_text())
    assert written == {**LINE, "loss_per_task": {"finish": 0.25, "like": None}}
