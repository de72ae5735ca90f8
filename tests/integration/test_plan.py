"""plan.py tells the sizes of a run that nothing has been prepared for."""

from rankmixer_dist.config import load_config
from rankmixer_dist.train.build import weightless_model


def test_the_sizes_are_those_of_the_model(launch, tmp_path):
    path, overrides = "configs/rankmixer_1b.yaml", ["name=unseen", f"runs={tmp_path}", f"data.prepared={tmp_path}/none"]
    planned = launch.python("launch/plan.py", path, *overrides)
    assert planned.returncode == 0, planned.stderr
    config = load_config(path, overrides)
    cost = weightless_model(config).cost()
    for figure in (cost.parameters, cost.flops_per_row_forward, cost.flops_per_row_train):
        assert f"{figure:,}" in planned.stdout
    for name, table in config.features.tables.items():
        assert name in planned.stdout
        assert f"{table.rows:,}" in planned.stdout
    assert not list(tmp_path.iterdir())
