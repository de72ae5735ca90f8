import pytest
import torch

from rankmixer_dist.layers.mlp import MLP
from rankmixer_dist.layers.reference import crosses as reference
from rankmixer_dist.models.dlrm_mlp import DLRMMLP

TOLERANCE = {torch.float64: 1e-15, torch.float32: 1e-6}  # seen: 1.4e-16, 1.2e-7


@pytest.mark.parametrize("dtype", TOLERANCE)
@pytest.mark.parametrize("hidden_dims", [(5,), (8, 1, 3)])
@pytest.mark.parametrize(("rows", "num_tokens", "token_dim"), [(3, 3, 7), (1, 1, 5)])
def test_backbone_matches_reference(matches_reference, rows, num_tokens, token_dim, hidden_dims, dtype):
    torch.manual_seed(0)
    matches_reference(
        DLRMMLP(num_tokens=num_tokens, token_dim=token_dim, hidden_dims=hidden_dims),
        lambda inputs, weights: reference.dlrm_mlp(inputs["x_BTD"], weights),
        {"x_BTD": torch.randn(rows, num_tokens, token_dim, dtype=torch.float64)},
        dtype,
        TOLERANCE[dtype],
    )


def test_a_last_linear_layer_keeps_negative_values():
    torch.manual_seed(0)
    x_BI = torch.randn(64, 4)
    assert MLP(in_dim=4, hidden_dims=(8,), out_dim=3)(x_BI).min() < 0
    assert MLP(in_dim=4, hidden_dims=(8, 3))(x_BI).min() == 0
    assert MLP(in_dim=4, hidden_dims=())(x_BI) is x_BI


def test_impossible_sizes_are_refused():
    with pytest.raises(ValueError, match="hidden_dims is empty"):
        DLRMMLP(num_tokens=2, token_dim=3, hidden_dims=())
    with pytest.raises(ValueError, match=r"hidden_dims \[4, 0\] .* must all be at least 1"):
        DLRMMLP(num_tokens=2, token_dim=3, hidden_dims=(4, 0))
    with pytest.raises(ValueError, match="num_tokens 0 must be at least 1"):
        DLRMMLP(num_tokens=0, token_dim=3)
