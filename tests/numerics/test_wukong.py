import pytest
import torch

from rankmixer_dist.layers.reference import crosses as reference
from rankmixer_dist.layers.token_linear import TokenLinear
from rankmixer_dist.models.wukong import Wukong

TOLERANCE = {torch.float64: 8e-14, torch.float32: 4e-5}  # seen: 9.0e-15, 4.4e-6

OPTIONS = [
    {},
    {"num_fm": 2, "num_linear": 2, "rank": 2, "fm_hidden_dims": ()},
    {"num_fm": 3, "num_linear": 1, "rank": 1, "fm_hidden_dims": (5, 6), "hidden_dims": ()},
]


def randomize(module):
    """LayerNorms would start as ones and zeros."""
    with torch.no_grad():
        for name, parameter in module.named_parameters():
            if "norm" in name:
                parameter.normal_(1.0 if name.endswith("weight") else 0.0, 0.4)
    return module


@pytest.mark.parametrize("dtype", TOLERANCE)
@pytest.mark.parametrize("options", OPTIONS, ids=str)
@pytest.mark.parametrize(("rows", "num_tokens", "token_dim"), [(3, 4, 5), (1, 3, 7), (2, 5, 3)])
def test_backbone_matches_reference(matches_reference, rows, num_tokens, token_dim, options, dtype):
    torch.manual_seed(0)
    model = Wukong(
        num_tokens=num_tokens,
        token_dim=token_dim,
        **{"num_layers": 2, "fm_hidden_dims": (6,), "hidden_dims": (9, 8), **options},
    )
    x_BTD = torch.randn(rows, num_tokens, token_dim, dtype=torch.float64)
    matches_reference(
        randomize(model),
        lambda inputs, weights: reference.wukong(inputs["x_BTD"], weights, 2),
        {"x_BTD": x_BTD},
        dtype,
        TOLERANCE[dtype],
    )
    assert model(x_BTD.to(dtype)).out_BD.shape == (rows, model.out_dim)


@pytest.mark.parametrize("dtype", TOLERANCE)
def test_one_token_matches_reference(matches_reference, dtype):
    torch.manual_seed(0)
    matches_reference(
        # Five tokens after the first layer; LayerNorm over the two values of two tokens is too ill-conditioned to test.
        randomize(Wukong(num_tokens=1, token_dim=5, num_fm=2, num_linear=3, fm_hidden_dims=(4,), hidden_dims=(6,))),
        lambda inputs, weights: reference.wukong(inputs["x_BTD"], weights, 2),
        {"x_BTD": torch.randn(2, 1, 5, dtype=torch.float64)},
        dtype,
        TOLERANCE[dtype],
    )


def test_defaults_keep_the_number_of_tokens():
    model = Wukong(num_tokens=5, token_dim=4)
    assert (model.num_fm, model.num_linear, model.rank) == (2, 3, 5)
    assert all(isinstance(layer.residual, torch.nn.Identity) for layer in model.layers)


def test_token_linear_starts_like_a_linear_layer():
    torch.manual_seed(0)
    weight = TokenLinear(in_tokens=64, out_tokens=500).weight
    twin = torch.nn.Linear(64, 500).weight
    assert weight.std().item() == pytest.approx(twin.std().item(), rel=0.02)
    assert weight.abs().max().item() == pytest.approx(1 / 8, rel=0.01)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"num_layers": 0}, "num_layers 0 must be at least 1"),
        ({"num_fm": 0}, "num_fm 0 must be at least 1"),
        ({"num_linear": 0}, "num_linear 0 must be at least 1"),
        ({"rank": 5}, r"rank 5 must lie in 1\.\.4, the number of tokens"),
        ({"num_fm": 1, "num_linear": 1, "rank": 3}, r"rank 3 must lie in 1\.\.2, the number of tokens"),
        ({"fm_hidden_dims": (0,)}, r"hidden_dims \[0\]"),
        ({"hidden_dims": (0,)}, r"hidden_dims \[0\]"),
    ],
)
def test_impossible_options_are_refused(options, message):
    with pytest.raises(ValueError, match=message):
        Wukong(num_tokens=4, token_dim=3, **options)
