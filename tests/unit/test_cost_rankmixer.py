import itertools

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from rankmixer_dist.cost import rankmixer_part
from rankmixer_dist.models.rankmixer import RankMixer

ROWS = 6
SIZES = {"num_tokens": 3, "token_dim": 9, "num_blocks": 2, "hidden_dim": 14}

NORMS = [{"norm": norm, "norm_kind": kind} for norm in ("post", "pre", "none") for kind in ("layer", "rms")]
MIXINGS = [
    {"mixing": "heads"},
    {"mixing": "heads", "shared_ffn": True},
    {"mixing": "heads", "skip": False},
    {"mixing": "heads", "skip": False, "num_heads": 1},
    {"mixing": "heads", "skip": False, "num_heads": 9, "num_tokens": 9},
    {"mixing": "heads", "skip": False, "num_heads": 2, "num_tokens": 6, "token_dim": 4, "shared_ffn": True},
    {"mixing": "none"},
    {"mixing": "none", "shared_ffn": True},
    {"mixing": "self_attention"},
    {"mixing": "self_attention", "num_heads": 9, "shared_ffn": True},
    {"mixing": "concat_mlp"},
    {"mixing": "share"},
]


@pytest.mark.parametrize(("mixing", "norm"), list(itertools.product(MIXINGS, NORMS)))
def test_parameters_and_flops_are_what_a_counter_sees(mixing, norm):
    options = {**SIZES, **mixing, **norm}
    model = RankMixer(**options)
    part = model.cost()
    assert part.parameters == sum(p.numel() for p in model.parameters())
    x_BTD = torch.randn(ROWS, options["num_tokens"], options["token_dim"], requires_grad=True)
    with FlopCounterMode(display=False) as forward:
        pooled_BD = model(x_BTD)
    assert part.flops_per_row_forward * ROWS == forward.get_total_flops()
    with FlopCounterMode(display=False) as backward:
        pooled_BD.sum().backward()
    assert part.flops_per_row_train * ROWS == forward.get_total_flops() + backward.get_total_flops()


def test_table_3_at_the_papers_size():
    """ΔParams and ΔFLOPs over token mixing, at the k that 107 M parameters imply."""
    sizes = {"num_tokens": 16, "token_dim": 768, "num_blocks": 2, "hidden_dim": round(2.83 * 768)}
    mixer = rankmixer_part(**sizes)
    for mixing, parameters, flops in (
        ("concat_mlp", 0.0, 0.0),
        ("share", 0.0, 0.0),
        ("self_attention", 0.044, 0.718),  # the paper reports .16 and .718
    ):
        part = rankmixer_part(**sizes, mixing=mixing)
        assert part.parameters / mixer.parameters - 1 == pytest.approx(parameters, abs=0.005)
        assert part.flops_per_row_forward / mixer.flops_per_row_forward - 1 == pytest.approx(flops, abs=0.005)
