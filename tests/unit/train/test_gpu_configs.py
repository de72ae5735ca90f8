"""The configs of a GPU's size fit GPUs of 80 GB, by the same count that the placement of tables goes by."""

from pathlib import Path

import pytest

from rankmixer_dist.config import load_config
from rankmixer_dist.cost.gpu import gpu_of_key
from rankmixer_dist.models.counted import count
from rankmixer_dist.train.build import room_on, weightless_model
from rankmixer_dist.train.dense_memory import dense_bytes, kept_for_backward
from rankmixer_dist.train.room import Host

CONFIGS = Path(__file__).resolve().parents[3] / "configs"
GIB = 2**30


@pytest.mark.parametrize(
    ("name", "shape", "gpus", "kept", "dense"),
    [
        ("rankmixer_100m_8gpus", "rankmixer_100m", 8, 1.66, 2.46),
        ("rankmixer_1b_16gpus", "rankmixer_1b", 16, 7.81, 15.04),
    ],
)
def test_a_config_for_gpus_fits_their_memory_and_gives_each_rows_enough(name, shape, gpus, kept, dense):
    config = load_config(CONFIGS / f"{name}.yaml")
    rows = config.loader.batch_size // gpus
    assert rows * gpus == config.loader.batch_size
    assert rows == config.data.row_group_rows == 4096  # each row group is read by the one rank whose share it is
    model = weightless_model(config)
    assert count(model) == count(weightless_model(load_config(CONFIGS / f"{shape}.yaml")))
    # The figures of docs/first_day_on_gpus.md.
    found = dense_bytes(config, model, ranks=gpus, rows_per_rank=rows, trains=True)
    assert found / GIB == pytest.approx(dense, abs=0.01)
    assert kept_for_backward(config, weightless_model(config), rows) / GIB == pytest.approx(kept, abs=0.01)
    for key in ("h100", "a100"):
        host = Host(8, None, gpu_of_key(key))
        room = room_on(config, host, ranks=gpus, rows_per_rank=rows, saves=True)
        assert sum(table.bytes for table in config.features.tables.values()) < room.memory_bytes


@pytest.mark.parametrize("sparse", ["true", "false"])
def test_experts_with_closed_gates_take_room_as_if_all_were_open(sparse):
    moe = {"kind": "softmax_topk", "active_ratio": 0.25, "sparse_training": sparse}
    config = load_config(CONFIGS / "quickstart.yaml", [f"model.rankmixer.moe.{k}={v}" for k, v in moe.items()])
    room = room_on(config, Host(8, None, gpu_of_key("h100")), ranks=8, rows_per_rank=64, saves=True)
    assert 0 < room.memory_bytes < gpu_of_key("h100").memory_bytes
