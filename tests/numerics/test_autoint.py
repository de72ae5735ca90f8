import pytest
import torch

from rankmixer_dist.layers.reference import attention as reference
from rankmixer_dist.models.autoint import AutoInt

TOLERANCE = {torch.float64: 1e-14, torch.float32: 2e-6}  # seen: 1.1e-15, 2.1e-7

# B, T, D, options
CASES = [
    (3, 4, 6, {}),
    (1, 3, 9, {"num_heads": 3, "num_layers": 1}),
    (2, 1, 5, {"num_heads": 1}),
    (4, 5, 7, {"num_heads": 2, "head_dim": 3, "scaled": True}),
]


@pytest.mark.parametrize("dtype", TOLERANCE)
@pytest.mark.parametrize(("rows", "num_tokens", "token_dim", "options"), CASES)
def test_backbone_matches_reference(matches_reference, rows, num_tokens, token_dim, options, dtype):
    torch.manual_seed(0)
    model = AutoInt(num_tokens=num_tokens, token_dim=token_dim, **options)
    assert model.out_dim == num_tokens * model.num_heads * model.head_dim
    sizes = (model.num_layers, model.num_heads, options.get("scaled", False))
    matches_reference(
        model,
        lambda inputs, weights: reference.autoint(inputs["x_BTD"], weights, *sizes),
        {"x_BTD": torch.randn(rows, num_tokens, token_dim, dtype=torch.float64)},
        dtype,
        TOLERANCE[dtype],
    )


def test_impossible_sizes_are_refused():
    with pytest.raises(ValueError, match="token_dim 9 is not a multiple of the 2 heads; .*give head_dim"):
        AutoInt(num_tokens=4, token_dim=9)
    with pytest.raises(ValueError, match="num_layers 0"):
        AutoInt(num_tokens=4, token_dim=8, num_layers=0)
    with pytest.raises(ValueError, match="head_dim 0"):
        AutoInt(num_tokens=4, token_dim=8, head_dim=0)
    with pytest.raises(ValueError, match="num_heads 0"):
        AutoInt(num_tokens=4, token_dim=8, num_heads=0)
    with pytest.raises(ValueError, match="num_tokens 0"):
        AutoInt(num_tokens=0, token_dim=8)
