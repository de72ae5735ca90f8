import pytest
import torch

from rankmixer_dist.layers.reference import crosses as reference
from rankmixer_dist.models.moe import MMoE

TOLERANCE = {torch.float64: 5e-15, torch.float32: 5e-6}  # seen: 6.0e-16, 5.7e-7


@pytest.mark.parametrize("dtype", TOLERANCE)
@pytest.mark.parametrize(("num_experts", "num_gates", "hidden_dims"), [(3, 2, (6, 5)), (1, 1, (4,)), (2, 3, (3,))])
@pytest.mark.parametrize(("rows", "num_tokens", "token_dim"), [(3, 3, 5), (1, 1, 4)])
def test_backbone_matches_reference(
    matches_reference, rows, num_tokens, token_dim, num_experts, num_gates, hidden_dims, dtype
):
    torch.manual_seed(0)
    model = MMoE(
        num_tokens=num_tokens,
        token_dim=token_dim,
        num_experts=num_experts,
        num_gates=num_gates,
        hidden_dims=hidden_dims,
    )
    x_BTD = torch.randn(rows, num_tokens, token_dim, dtype=torch.float64)
    matches_reference(
        model,
        lambda inputs, w: reference.mmoe(inputs["x_BTD"], w, num_experts, num_gates, len(hidden_dims)),
        {"x_BTD": x_BTD},
        dtype,
        TOLERANCE[dtype],
    )
    assert model(x_BTD.to(dtype)).out_BD.shape == (rows, num_gates * hidden_dims[-1])


def test_each_gate_has_its_own_part_of_the_pooled_vector():
    torch.manual_seed(0)
    model = MMoE(num_tokens=2, token_dim=3, num_experts=2, num_gates=3, hidden_dims=(4,))
    x_BTD = torch.randn(5, 2, 3)
    before = model(x_BTD).out_BD
    with torch.no_grad():
        model.gates.weight[2:4] += 1  # gate 1
    changed = (model(x_BTD).out_BD != before).any(dim=0)
    assert changed[4:8].any() and not changed[:4].any() and not changed[8:].any()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"num_experts": 0}, "num_experts 0 must be at least 1"),
        ({"num_gates": 0}, "num_gates 0 must be at least 1"),
        ({"hidden_dims": ()}, r"hidden_dims \[\] needs at least one width"),
        ({"hidden_dims": (4, 0)}, r"hidden_dims \[4, 0\] needs at least one width, and none below 1"),
    ],
)
def test_impossible_options_are_refused(options, message):
    with pytest.raises(ValueError, match=message):
        MMoE(num_tokens=2, token_dim=3, **options)
