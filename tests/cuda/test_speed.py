"""The share of a plain GEMM's rate that the backbone reaches on a GPU, and that the measuring itself works on a CPU."""

from pathlib import Path

import pytest
import torch

from rankmixer_dist.benchmarks.dense import PUBLISHED, ROWS_ON_GPU, measured, on_gpu, published
from rankmixer_dist.benchmarks.device import in_words, measured_device
from rankmixer_dist.train.activations import kept_bytes
from tests.reference_errors import device_or_skip

ROOT = Path(__file__).resolve().parents[2]
GOAL = 0.6
"""Of the GEMM in the same call: bf16 training of the 1B shape at 4,096 rows a GPU."""


@pytest.mark.cuda
@pytest.mark.parametrize("shape", PUBLISHED, ids=lambda shape: shape.name)
def test_bf16_training_reaches_its_share_of_a_gemm(shape, record_property):
    device = device_or_skip("cuda")
    figures = on_gpu(shape, device)
    for figure in figures:
        print(f"{in_words(device)}: {figure}, {figure.value / figure.reference:.3f}")
        record_property(figure.name, {"value": figure.value, "reference": figure.reference, "unit": figure.unit})
    shares = {figure.name: figure.value / figure.reference for figure in figures}
    memory = [share for name, share in shares.items() if "memory" in name]
    assert all(0.9 < share < 1.6 for share in memory), (
        memory
    )  # the backward's own tensors come on top of what is counted
    if shape.name == "RankMixer-1B":
        assert shares[f"RankMixer-1B train, bf16, {ROWS_ON_GPU[-1]} rows"] >= GOAL


def test_a_figure_names_rate_and_reference():
    shape = published("small", 4, 32, 64)
    forward, train = measured(shape, "fp32", torch.device("cpu"), rows=16, repeats=2)
    assert (forward.name, train.name) == ("small forward, fp32", "small train, fp32")
    assert forward.against == train.against
    assert forward.against in ("GEMM 128x128x128", "GEMM 64x32x96")
    assert min(forward.value, train.value, forward.reference) > 0
    assert forward.unit == "GFLOP/s"


def test_the_device_is_named():
    device = measured_device()
    assert device.type == ("cuda" if torch.cuda.is_available() else "cpu")
    assert in_words(torch.device("cpu")).startswith("CPU ")
    assert in_words(torch.device("cpu")).endswith((" core", " cores"))


def test_a_gpu_is_named_by_its_driver(monkeypatch):
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: "NVIDIA H100 80GB HBM3")
    assert in_words(torch.device("cuda", 0)) == "GPU NVIDIA H100 80GB HBM3"


@pytest.mark.parametrize(
    ("shape", "config"), [(PUBLISHED[0], "rankmixer_100m"), (PUBLISHED[1], "rankmixer_1b")], ids=["100M", "1B"]
)
def test_the_published_shapes_are_those_of_the_configs(shape, config):
    pytest.importorskip("torchrec", reason="needs the whole install, not torch alone")
    from rankmixer_dist.config import load_config
    from rankmixer_dist.train.build import weightless_model

    model = weightless_model(load_config(ROOT / "configs" / f"{config}.yaml"))
    with torch.device("meta"):
        sizes = [{name: p.shape for name, p in m.named_parameters()} for m in (shape.build(), model.backbone)]
    assert sizes[0] == sizes[1]
    assert (model.tokenizer.num_tokens, model.tokenizer.token_dim) == (shape.num_tokens, shape.token_dim)


def test_what_is_kept_for_the_backward_pass_is_counted_once():
    weight = torch.empty(8, 4, device="meta", requires_grad=True)
    x = torch.empty(16, 8, device="meta", requires_grad=True)

    def forward() -> torch.Tensor:
        hidden = (x @ weight).relu()  # keeps x for the weight, and its own output
        return hidden * hidden  # which is kept already

    assert kept_bytes(forward, besides=[weight]) == 4 * (16 * 8 + 16 * 4)
    assert kept_bytes(forward, besides=[weight, x]) == 4 * 16 * 4
    with torch.no_grad():
        assert kept_bytes(forward) == 0
