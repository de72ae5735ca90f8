"""The row of the table of peaks that a run's precision takes, and what a GPU that has none does."""

from pathlib import Path

import pytest
import torch

from rankmixer_dist.config import load_config
from rankmixer_dist.train import peak
from rankmixer_dist.train.build import weightless_model

ROOT = Path(__file__).resolve().parents[3]
GPU = torch.device("cuda", 0)


@pytest.fixture
def tf32():
    """torch's switch, which is set back afterwards."""
    switch = torch.backends.cuda.matmul
    before = switch.allow_tf32
    yield switch
    switch.allow_tf32 = before


@pytest.mark.parametrize(
    ("dtype", "switch", "tera"),
    [
        (torch.bfloat16, False, 989.4),
        (torch.bfloat16, True, 989.4),
        (torch.float32, False, 66.9),
        (torch.float32, True, 494.7),
    ],
)
def test_the_peak_is_that_of_the_precision_and_of_torchs_switch(monkeypatch, tf32, dtype, switch, tera):
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: "NVIDIA H100 80GB HBM3")
    monkeypatch.setattr(peak, "measured_peak", lambda *_: pytest.fail("the table knows an H100"))
    tf32.allow_tf32 = switch
    assert peak.Peak(GPU, dtype).share(tera * 1e12 / 2) == pytest.approx(0.5)
    assert peak.Peak(GPU, dtype).share(tera * 1e12 * 2) == pytest.approx(2), "a sheet's figure is not measured again"


def test_a_gpu_that_is_not_in_the_table_is_measured_like_a_cpu(monkeypatch):
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: "NVIDIA GeForce GTX 1080")
    asked = []
    monkeypatch.setattr(peak, "measured_peak", lambda *of: asked.append(of) or 1e12)
    assert peak.Peak(GPU, torch.float32).share(0.25e12) == 0.25
    assert asked == [(GPU, torch.float32)]


def test_building_a_model_says_how_fp32_is_multiplied_whatever_was_said_before(tf32):
    """Images of NVIDIA set TORCH_ALLOW_TF32_CUBLAS_OVERRIDE, which is torch's switch at its start."""
    for wanted in (False, True, False):
        tf32.allow_tf32 = not wanted
        weightless_model(load_config(ROOT / "configs" / "quickstart.yaml", [f"dense.tf32={wanted}"]))
        assert tf32.allow_tf32 == wanted
