import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from rankmixer_dist.cost.attention import autoint_part, hetero_attention_part, hhft_part, hiformer_part
from rankmixer_dist.models.autoint import AutoInt
from rankmixer_dist.models.hetero_attention import HeteroAttention
from rankmixer_dist.models.hhft import HHFT
from rankmixer_dist.models.hiformer import Hiformer

ROWS = 6
T, D = 3, 8

OPTIONS = [
    {},
    {"num_heads": 2, "head_dim": 5},
    {"num_heads": 1, "hidden_dim": 7, "norm": "pre"},
]
RANKS = [{"rank": None}, {"rank": 4}, {"rank": 15}]
CASES = [
    *[(AutoInt, autoint_part, options) for options in ({}, {"num_heads": 3, "head_dim": 5}, {"num_layers": 1})],
    *[(HeteroAttention, hetero_attention_part, options | {"num_blocks": 3}) for options in OPTIONS],
    *[(HeteroAttention, hetero_attention_part, {})],
    *[(Hiformer, hiformer_part, options | rank) for options in OPTIONS for rank in RANKS],
    *[(HHFT, hhft_part, options | {"num_hiformer_blocks": 2} | rank) for options in OPTIONS for rank in RANKS],
    *[(HHFT, hhft_part, {"num_hetero_blocks": 1})],
]


@pytest.mark.parametrize(("backbone", "part_of_sizes", "options"), CASES)
def test_closed_form_is_what_a_counter_sees(backbone, part_of_sizes, options):
    model = backbone(num_tokens=T, token_dim=D, **options)
    # The defaults of the closed form are those of the model.
    part = part_of_sizes(num_tokens=T, token_dim=D, **options)
    assert model.cost() == part
    assert part.parameters == sum(p.numel() for p in model.parameters())
    with FlopCounterMode(display=False) as forward:
        output = model(torch.randn(ROWS, T, D, requires_grad=True))
    assert output.shape == (ROWS, model.out_dim)
    assert part.flops_per_row_forward * ROWS == forward.get_total_flops()
    with FlopCounterMode(display=False) as backward:
        output.sum().backward()
    assert part.flops_per_row_train * ROWS == forward.get_total_flops() + backward.get_total_flops()


def test_a_low_rank_pays_at_the_size_that_the_docstring_names():
    sizes = {"num_tokens": 16, "token_dim": 768, "num_blocks": 1, "num_heads": 8}
    full, low = hiformer_part(**sizes), hiformer_part(**sizes, rank=256)
    assert full.parameters - low.parameters == 3 * (16 * 768) ** 2 - 3 * 256 * 2 * 16 * 768
    assert full.parameters == pytest.approx(453e6 + 16 * (1 + 8) * 768**2, rel=0.001)
