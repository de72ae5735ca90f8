import subprocess
import sys

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from rankmixer_dist.cost.moe import dtsi_moe_part, softmax_moe_part
from rankmixer_dist.layers.dtsi_moe import DTSIMoE
from rankmixer_dist.layers.softmax_moe import SoftmaxTopKMoE

ROWS = 6
SIZES = [
    {"num_tokens": 3, "token_dim": 9, "num_experts": 4, "hidden_dim": 5},
    {"num_tokens": 1, "token_dim": 4, "num_experts": 1, "hidden_dim": 7},
]


def training_flops(moe, sizes):
    x_TBD = torch.randn(sizes["num_tokens"], ROWS, sizes["token_dim"], requires_grad=True)
    with FlopCounterMode(display=False) as counter:
        moe(x_TBD).sum().backward()
    return counter.get_total_flops()


def serving_flops(moe, sizes):
    x_TBD = torch.randn(sizes["num_tokens"], ROWS, sizes["token_dim"])
    with FlopCounterMode(display=False) as counter, torch.inference_mode(False), torch.no_grad():
        moe.eval()(x_TBD)
    return counter.get_total_flops()


@pytest.mark.parametrize("sizes", SIZES)
@pytest.mark.parametrize("fusion", ["stochastic_rows", "stochastic_steps", "mean", "straight_through"])
def test_dtsi_is_what_a_counter_sees(sizes, fusion):
    torch.manual_seed(0)
    moe = DTSIMoE(**sizes, fusion=fusion)
    assert dtsi_moe_part(**sizes).parameters == sum(p.numel() for p in moe.parameters())
    assert dtsi_moe_part(**sizes).flops_per_row_train * ROWS == training_flops(moe, sizes)
    flops = serving_flops(moe, sizes)
    part = dtsi_moe_part(**sizes, active_ratio=moe.report.active_T.mean().item())
    assert 0 < moe.report.active_T.mean() < 1
    assert part.flops_per_row_forward * ROWS == pytest.approx(flops, abs=ROWS)  # the ratio is rounded, per row


@pytest.mark.parametrize(
    ("sizes", "options"),
    [
        (SIZES[0], {"top_k": 1}),
        (SIZES[0], {"top_k": 3, "sparse_training": True}),
        (SIZES[0], {"top_k": 2, "shared_expert": True}),
        (SIZES[0], {"top_k": 4, "shared_expert": True, "sparse_training": True}),
        (SIZES[1], {"top_k": 1}),
    ],
)
def test_softmax_is_what_a_counter_sees(sizes, options):
    moe = SoftmaxTopKMoE(**sizes, **options)
    part = softmax_moe_part(**sizes, **options)
    assert part.parameters == sum(p.numel() for p in moe.parameters())
    assert part.flops_per_row_train * ROWS == training_flops(moe, sizes)
    assert part.flops_per_row_forward * ROWS == serving_flops(moe, sizes)


def test_serving_at_an_eighth_costs_about_an_eighth():
    sizes = {"num_tokens": 16, "token_dim": 768, "num_experts": 8, "hidden_dim": 256}
    full, eighth = dtsi_moe_part(**sizes), dtsi_moe_part(**sizes, active_ratio=1 / 8)
    assert full.parameters == eighth.parameters and full.flops_per_row_train == eighth.flops_per_row_train
    assert eighth.flops_per_row_forward / full.flops_per_row_forward == pytest.approx(1 / 8, rel=0.05)


def test_a_ratio_that_is_no_share_is_refused():
    with pytest.raises(ValueError, match=r"active_ratio 1.5 must be a share from 0 to 1"):
        dtsi_moe_part(**SIZES[0], active_ratio=1.5)


def test_importing_it_needs_no_torch():
    code = "import sys, rankmixer_dist.cost.moe; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
