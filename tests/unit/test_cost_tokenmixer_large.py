import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from rankmixer_dist.models.tokenmixer_large import TokenMixerLarge

ROWS = 6


@pytest.mark.parametrize(
    "options",
    [
        {"num_tokens": 3, "token_dim": 9},
        {"num_tokens": 3, "token_dim": 8, "num_heads": 4, "num_blocks": 3, "hidden_dim": 5},
        {"num_tokens": 4, "token_dim": 6, "num_heads": 2, "num_blocks": 2, "inter_residual": 1},
        {"num_tokens": 1, "token_dim": 5, "num_blocks": 1, "inter_residual": 0},
    ],
)
def test_parameters_and_flops_are_what_a_counter_sees(options):
    model = TokenMixerLarge(**options)
    part = model.cost()
    assert part.parameters == sum(p.numel() for p in model.parameters())
    x_BTD = torch.randn(ROWS, options["num_tokens"], options["token_dim"], requires_grad=True)
    with FlopCounterMode(display=False) as forward:
        pooled_BD = model(x_BTD)
    assert part.flops_per_row_forward * ROWS == forward.get_total_flops()
    with FlopCounterMode(display=False) as backward:
        pooled_BD.sum().backward()
    assert part.flops_per_row_train * ROWS == forward.get_total_flops() + backward.get_total_flops()


def test_the_default_block_has_the_weights_of_a_rankmixer_block_with_k_3():
    model = TokenMixerLarge(num_tokens=2, token_dim=8, num_blocks=1)
    matrices = sum(p.numel() for p in model.parameters() if p.dim() == 3)
    assert matrices == 2 * 3 * 2 * 8**2
