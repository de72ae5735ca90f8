"""HeteroAttention, Hiformer and HHFT against the loops of the papers."""

import pytest
import torch

from rankmixer_dist.layers.reference import attention as reference
from rankmixer_dist.models.hetero_attention import HeteroAttention
from rankmixer_dist.models.hhft import HHFT
from rankmixer_dist.models.hiformer import Hiformer

TOLERANCE = {torch.float64: 1e-14, torch.float32: 6e-6}  # seen: 1.8e-15, 6.7e-7
PER_TOKEN, COMPOSITE = ["per_token"], ["composite"]

# Model, B, T, D, options, kinds of its blocks
CASES = [
    (HeteroAttention, 3, 3, 8, {}, 2 * PER_TOKEN),
    (HeteroAttention, 1, 4, 9, {"num_heads": 3, "hidden_dim": 7}, 2 * PER_TOKEN),
    (HeteroAttention, 2, 1, 5, {"num_heads": 1}, 2 * PER_TOKEN),
    (HeteroAttention, 3, 2, 7, {"num_heads": 2, "head_dim": 3, "num_blocks": 1}, PER_TOKEN),
    (Hiformer, 3, 3, 8, {}, 2 * COMPOSITE),
    (Hiformer, 1, 4, 9, {"num_heads": 3, "hidden_dim": 7, "rank": 5}, 2 * COMPOSITE),
    (Hiformer, 2, 1, 5, {"num_heads": 1}, 2 * COMPOSITE),
    (Hiformer, 2, 1, 5, {"num_heads": 1, "rank": 2}, 2 * COMPOSITE),
    (Hiformer, 3, 2, 7, {"num_heads": 2, "head_dim": 3, "num_blocks": 1, "rank": 1}, COMPOSITE),
    (Hiformer, 3, 2, 7, {"num_heads": 2, "head_dim": 3, "num_blocks": 1}, COMPOSITE),
    (HHFT, 3, 3, 8, {}, 2 * PER_TOKEN + COMPOSITE),
    (HHFT, 1, 4, 9, {"num_heads": 3, "hidden_dim": 7, "rank": 5, "num_hetero_blocks": 1}, PER_TOKEN + COMPOSITE),
    (HHFT, 2, 1, 5, {"num_heads": 1, "num_hetero_blocks": 1, "num_hiformer_blocks": 2}, PER_TOKEN + 2 * COMPOSITE),
    (HHFT, 3, 2, 7, {"num_heads": 2, "head_dim": 3, "num_hetero_blocks": 1, "rank": 3}, PER_TOKEN + COMPOSITE),
]


def randomize_norms(module: torch.nn.Module) -> torch.nn.Module:
    """LayerNorms would start as ones and zeros, which their places and those of their weights and biases share."""
    with torch.no_grad():
        for name, parameter in module.named_parameters():
            if "norm" in name:
                parameter.normal_(1.0 if name.endswith("weight") else 0.0, 0.4)
    return module


@pytest.mark.parametrize("dtype", TOLERANCE)
@pytest.mark.parametrize("norm", ["post", "pre"])
@pytest.mark.parametrize(("backbone", "rows", "num_tokens", "token_dim", "options", "kinds"), CASES)
def test_backbone_matches_reference(
    matches_reference, backbone, rows, num_tokens, token_dim, options, kinds, norm, dtype
):
    torch.manual_seed(0)
    model = backbone(num_tokens=num_tokens, token_dim=token_dim, norm=norm, **options)
    matches_reference(
        randomize_norms(model),
        lambda inputs, weights: reference.attention_stack(inputs["x_BTD"], weights, kinds, model.num_heads, norm),
        {"x_BTD": torch.randn(rows, num_tokens, token_dim, dtype=torch.float64)},
        dtype,
        TOLERANCE[dtype],
    )


REFUSED = [
    ({"token_dim": 9}, "token_dim 9 is not a multiple of the 4 heads; .*give head_dim"),
    ({"head_dim": 0}, "head_dim 0"),
    ({"num_heads": 0}, "num_heads 0"),
    ({"hidden_dim": 0}, "hidden_dim 0"),
    ({"norm": "sandwich"}, "norm 'sandwich' is unknown"),
]
BLOCKS = [({"num_blocks": 0}, "num_blocks 0")]
OF_HHFT = [({"num_hetero_blocks": 0}, "num_hetero_blocks 0"), ({"num_hiformer_blocks": 0}, "num_hiformer_blocks 0")]
RANKS = [({"rank": 33}, r"rank 33 must be in 1\.\.32"), ({"rank": 0}, "rank 0")]


@pytest.mark.parametrize(
    ("backbone", "options", "message"),
    [
        *((HeteroAttention, *case) for case in (*REFUSED, *BLOCKS)),
        *((Hiformer, *case) for case in (*REFUSED, *BLOCKS, *RANKS)),
        *((HHFT, *case) for case in (*REFUSED, *OF_HHFT, *RANKS)),
    ],
)
def test_impossible_sizes_are_refused(backbone, options, message):
    with pytest.raises(ValueError, match=message):
        backbone(**{"num_tokens": 4, "token_dim": 8, **options})
