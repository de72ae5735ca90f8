import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from rankmixer_dist.layers.tokenizer import AutoSplitTokenizer, ChunkTokenizer, GroupTokenizer

ROWS = 6

KINDS = [
    lambda **form: GroupTokenizer(group_dims=(5, 9, 5), group_tokens=(1, 2, 3), token_dim=7, **form),
    lambda **form: GroupTokenizer(group_dims=(3,), group_tokens=(1,), token_dim=4, **form),
    lambda **form: ChunkTokenizer(in_dim=12, num_chunks=4, token_dim=7, **form),
    lambda **form: ChunkTokenizer(in_dim=11, num_chunks=3, token_dim=5, **form),
    lambda **form: AutoSplitTokenizer(in_dim=11, num_splits=3, token_dim=5, **form),
]


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("hidden_dim", [None, 6])
@pytest.mark.parametrize("global_token", [False, True])
def test_parameters_and_flops_are_what_a_counter_sees(kind, hidden_dim, global_token):
    tokenizer = kind(hidden_dim=hidden_dim, global_token=global_token)
    part = tokenizer.cost()
    assert part.name == "tokenizer"
    assert part.parameters == sum(p.numel() for p in tokenizer.parameters())
    x_BW = torch.randn(ROWS, tokenizer.in_dim, requires_grad=True)
    with FlopCounterMode(display=False) as forward:
        x_BTD = tokenizer(x_BW)
    assert part.flops_per_row_forward * ROWS == forward.get_total_flops()
    with FlopCounterMode(display=False) as backward:
        x_BTD.sum().backward()
    assert part.flops_per_row_train * ROWS == forward.get_total_flops() + backward.get_total_flops()
