import subprocess
import sys

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from rankmixer_dist.models.dcn_v2 import DCNv2
from rankmixer_dist.models.dhen import DHEN
from rankmixer_dist.models.dlrm_mlp import DLRMMLP
from rankmixer_dist.models.moe import MMoE
from rankmixer_dist.models.rdcn import RDCN
from rankmixer_dist.models.wukong import Wukong

ROWS = 6


def assert_cost(model, num_tokens, token_dim):
    """Parameters, and FLOPs of the forward and of both passes, are what a counter sees."""
    part = model.cost()
    assert part.name == "backbone"
    assert part.parameters == sum(p.numel() for p in model.parameters())
    with FlopCounterMode(display=False) as forward:
        output = model(torch.randn(ROWS, num_tokens, token_dim, requires_grad=True))
    assert part.flops_per_row_forward * ROWS == forward.get_total_flops()
    with FlopCounterMode(display=False) as backward:
        output.sum().backward()
    assert part.flops_per_row_train * ROWS == forward.get_total_flops() + backward.get_total_flops()


SMALL = {"num_layers": 2, "hidden_dims": (6, 4)}

CASES = [
    (DLRMMLP, {}),
    (DLRMMLP, {"hidden_dims": (7, 3, 5)}),
    (DCNv2, {}),
    (DCNv2, {**SMALL, "structure": "stacked"}),
    (DCNv2, {**SMALL, "rank": 3}),
    (DCNv2, {**SMALL, "rank": 3, "num_experts": 4}),
    (DCNv2, {**SMALL, "rank": 2, "num_experts": 2, "hidden_dims": ()}),
    (RDCN, {**SMALL, "rank": 6}),
    (RDCN, {**SMALL, "rank": 6, "slot_dim": 3, "plain_cross": False}),
    (RDCN, {**SMALL, "rank": 2, "hidden_dims": ()}),
    (MMoE, {}),
    (MMoE, {"num_experts": 3, "num_gates": 2, "hidden_dims": (5,)}),
    (Wukong, {}),
    (Wukong, {**SMALL, "num_fm": 1, "num_linear": 2, "rank": 2, "fm_hidden_dims": (5, 4)}),
    (Wukong, {**SMALL, "num_layers": 3, "num_fm": 4, "num_linear": 3, "fm_hidden_dims": (), "hidden_dims": ()}),
    (DHEN, {"rank": 8}),
    (DHEN, {**SMALL, "interactions": ("dot",), "dot_hidden_dims": ()}),
    (DHEN, {**SMALL, "interactions": ("cross",), "rank": 3, "tokens_per_module": 2}),
    (DHEN, {**SMALL, "interactions": ("attention",), "num_heads": 3, "ffn_dim": 5}),
    (DHEN, {**SMALL, "interactions": ("linear", "dot"), "ensemble": "sum"}),
    (DHEN, {"interactions": ("linear", "cross"), "ensemble": "sum", "tokens_per_module": 3, "rank": 4}),
]


@pytest.mark.parametrize(("model", "options"), CASES, ids=lambda value: getattr(value, "__name__", str(value)))
@pytest.mark.parametrize(("num_tokens", "token_dim"), [(5, 6), (4, 9)])
def test_parameters_and_flops_are_what_a_counter_sees(model, options, num_tokens, token_dim):
    assert_cost(model(num_tokens=num_tokens, token_dim=token_dim, **options), num_tokens, token_dim)


def test_importing_it_needs_no_torch():
    code = "import sys, rankmixer_dist.cost.crosses; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
