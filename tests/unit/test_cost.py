import subprocess
import sys

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from rankmixer_dist.cost import heads_part, peak_flops, rankmixer_part, target_attention_part, total
from rankmixer_dist.layers.target_attention import TargetAttention
from rankmixer_dist.layers.task_heads import TaskHeads
from rankmixer_dist.models.ranker import FieldSpec, GroupSpec, NumericSpec, SequenceSpec, build_ranker
from rankmixer_dist.models.rankmixer import RankMixer

ROWS = 6


def assert_cost(part, module, *inputs):
    """Parameters, and FLOPs of the forward and of both passes, are what a counter sees."""
    assert part.parameters == sum(p.numel() for p in module.parameters())
    with FlopCounterMode(display=False) as forward:
        output = module(*inputs)
    assert part.flops_per_row_forward * ROWS == forward.get_total_flops()
    with FlopCounterMode(display=False) as backward:
        output.sum().backward()
    trained = forward.get_total_flops() + backward.get_total_flops()
    assert total([part]).flops_per_row_train * ROWS == trained


def leaf(*shape):
    return torch.randn(shape, requires_grad=True)


@pytest.mark.parametrize("norm", ["post", "pre"])
def test_backbone(norm):
    sizes = {"num_tokens": 3, "token_dim": 9, "num_blocks": 2, "hidden_dim": 14, "norm": norm}
    assert_cost(rankmixer_part(**sizes), RankMixer(**sizes), leaf(ROWS, 3, 9))


@pytest.mark.parametrize("hidden_dims", [(6,), (8, 5, 3)])
def test_target_attention(hidden_dims):
    part = target_attention_part("history", dim=7, length=11, hidden_dims=hidden_dims)
    attention = TargetAttention(dim=7, hidden_dims=hidden_dims)
    assert_cost(part, attention, leaf(ROWS, 7), leaf(ROWS, 11, 7), torch.full((ROWS,), 4))


@pytest.mark.parametrize("hidden_dims", [(), (6, 4)])
def test_heads(hidden_dims):
    sizes = {"in_dim": 9, "num_tasks": 3, "hidden_dims": hidden_dims}
    assert_cost(heads_part(**sizes), TaskHeads(**sizes), leaf(ROWS, 9))


def test_a_whole_ranker_reports_its_cost_by_part():
    ranker = build_ranker(
        fields=[FieldSpec("user", 8), FieldSpec("item", 6)],
        sequences=[
            SequenceSpec("watched", 6, 5, query="item", attention_hidden=(7, 3)),
            SequenceSpec("liked", 6, 4, pooling="mean"),
        ],
        numerics=[NumericSpec("age", 0.0, 1.0)],
        groups=[GroupSpec("a", 2, ("user", "watched")), GroupSpec("b", 1, ("item", "age", "liked"))],
        token_dim=12,
        options={"num_blocks": 2, "hidden_dim": 20},
        base_rates=(0.5, 0.5),
        head_hidden=(4,),
    )
    cost = ranker.cost()
    fields = {"user": leaf(ROWS, 8), "item": leaf(ROWS, 6)}
    sequences = {"watched": leaf(ROWS, 5, 6), "liked": leaf(ROWS, 4, 6)}
    lengths = {name: torch.full((ROWS,), 2) for name in sequences}
    with FlopCounterMode(display=False) as counter:
        ranker(fields, sequences, lengths, torch.zeros(ROWS, 1)).sum().backward()
    assert cost.parameters == sum(p.numel() for p in ranker.parameters())
    assert cost.flops_per_row_train * ROWS == counter.get_total_flops()
    parts = cost.breakdown()
    assert list(parts) == ["pooling.watched", "pooling.liked", "tokenizer", "backbone", "heads"]
    assert sum(part["flops_per_row_train"] for part in parts.values()) == cost.flops_per_row_train
    assert parts["tokenizer"]["parameters"] == sum(p.numel() for p in ranker.tokenizer.parameters())


def test_the_papers_formula_is_the_leading_term():
    part = rankmixer_part(num_tokens=16, token_dim=768, num_blocks=2, hidden_dim=3 * 768)
    # Eq. 12 at k = 3: 2kLTD^2 parameters and twice that FLOPs, biases and norms apart.
    assert part.parameters == pytest.approx(2 * 3 * 2 * 16 * 768**2, rel=0.002)
    assert part.flops_per_row_forward == 4 * 3 * 2 * 16 * 768**2


@pytest.mark.parametrize(
    ("device", "bf16", "tf32", "fp32"),
    [
        ("NVIDIA A100-SXM4-80GB", 312, 156, 19.5),
        ("NVIDIA A100-SXM4-40GB", 312, 156, 19.5),
        ("NVIDIA A100 80GB PCIe", 312, 156, 19.5),
        ("NVIDIA A800-SXM4-80GB", 312, 156, 19.5),
        ("NVIDIA A10", 125, 62.5, 31.2),
        ("NVIDIA A10G", 70, 35, 31.5),
        ("NVIDIA H100 80GB HBM3", 989.4, 494.7, 66.9),
        ("NVIDIA H800", 989.4, 494.7, 66.9),
        ("NVIDIA H100 PCIe", 756, 378, 51.2),
        ("NVIDIA H800 PCIe", 756, 378, 51.2),
        ("NVIDIA H100 NVL", 835.5, 417.5, 60),
        ("NVIDIA H200", 989.4, 494.7, 66.9),
        ("NVIDIA H200 NVL", 835.5, 417.5, 60),
        ("NVIDIA H20", 148, 74, 44),
        ("NVIDIA GH200 480GB", 989.4, 494.7, 66.9),
        ("NVIDIA GH200 144G HBM3e", 989.4, 494.7, 66.9),
        ("NVIDIA B200", 2250, 1100, 75),
        ("NVIDIA GB200", 2500, 1250, 80),
        ("NVIDIA L4", 121, 60, 30.3),
        ("NVIDIA L40S", 362, 183, 91.6),
    ],
)
def test_peak_of_known_gpus(device, bf16, tf32, fp32):
    rates = {rate: peak_flops(device, rate) for rate in ("bf16", "tf32", "fp32")}
    assert rates == {"bf16": bf16 * 1e12, "tf32": tf32 * 1e12, "fp32": fp32 * 1e12}


def test_a_peak_that_is_not_known_is_none_and_a_rate_that_is_not_is_refused():
    assert peak_flops("NVIDIA GeForce GTX 1080", "fp32") is None
    assert peak_flops("NVIDIA RTX A4000", "bf16") is None  # not an A40
    assert peak_flops("Tesla V100-SXM2-32GB", "fp32") is None  # no wheel has code for it
    with pytest.raises(ValueError, match="rate 'int8' is unknown"):
        peak_flops("NVIDIA H200", "int8")


def test_importing_it_needs_no_torch():
    code = "import sys, rankmixer_dist.cost; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
