"""The logistic regression beside a model: what it says of a task that it cannot be fitted to."""

import json
import runpy
import shutil

import pyarrow as pa
import pyarrow.parquet as pq

from data_pipeline.job import SerialJob
from data_pipeline.preprocess import preprocess
from rankmixer_dist.config import load_config


def test_a_task_of_one_class_is_one_line_and_the_others_are_fitted(small_config, tmp_path, capsys):
    raw = tmp_path / "raw"
    shutil.copytree(load_config(small_config).source.path, raw)
    for path in sorted(raw.glob("log_*.parquet")):
        table = pq.read_table(path)
        for name, values in (("skip", [None] * len(table)), ("like", [0] * len(table))):
            table = table.set_column(table.column_names.index(name), name, pa.array(values, pa.int8()))
        pq.write_table(table, path)
    overrides = [f"source.path={raw}", f"data.prepared={tmp_path / 'prepared'}", f"runs={tmp_path / 'runs'}"]
    overrides.append("features.tasks.skip.unknown=mask")
    preprocess(load_config(small_config, overrides), progress=False, job=SerialJob())
    runpy.run_path("launch/baseline.py")["main"]([str(small_config), *overrides, "--ids-only"])
    lines = capsys.readouterr().out.splitlines()
    assert lines[1].startswith("finish       C ")
    assert lines[2:] == [
        "skip         no baseline: 0 labels to fit are 1, 0 are 0; 0 to score",
        "like         no baseline: 0 labels to fit are 1, 2,571 are 0; 429 to score",
    ]
    (result,) = tmp_path.glob("runs/*/baseline_ids.json")
    assert list(json.loads(result.read_text())["tasks"]) == ["finish"]
