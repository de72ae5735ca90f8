"""A small checkpoint to damage, and a process group of one."""

from pathlib import Path

import pytest
import torch

from rankmixer_dist.checkpoint.about import About, DataPosition
from rankmixer_dist.checkpoint.folder import checkpoint_path
from rankmixer_dist.checkpoint.saver import Saver
from rankmixer_dist.pieces import Piece, whole


def about(step: int, **changes) -> About:
    """A description of a checkpoint of a small run."""
    values = {
        "step": step,
        "rows": step * 10,
        "position": DataPosition(epoch=0, row=step * 10),
        "updates": step,
        "moments": ("exp_avg",),
        "shapes": {"layer": (3, 4)},
        "world_size": 1,
        "config": {"seed": 1},
        "versions": {"torch": "2"},
    }
    return About(**values | changes)


def pieces(value: float = 0.0) -> list[Piece]:
    """Tensors of several shapes and types, one of them in two pieces."""
    table = torch.arange(60, dtype=torch.float32).view(20, 3) + value
    return [
        Piece("tables/video.weight", (20, 3), (0, 0), table[:7]),
        Piece("tables/video.weight", (20, 3), (7, 0), table[7:]),
        whole("dense/layer.weight", torch.randn(12) + value),
        whole("dense/layer.exp_avg", torch.randn(12) + value),
        whole("random/cpu-00000", torch.arange(50, dtype=torch.uint8)),
    ]


@pytest.fixture
def saved(tmp_path, one_rank) -> Path:
    """A complete checkpoint of step 20, and one of step 10 beside it."""
    saver = Saver(tmp_path, one_rank, keep=3)
    for step in (10, 20):
        saver.save(about(step), pieces(step))
    saver.finish()
    return checkpoint_path(tmp_path, 20)
