import pytest
import torch

from rankmixer_dist.layers.cross import CrossLayer, CrossNetwork, MixtureCrossLayer
from rankmixer_dist.layers.reference import crosses as reference
from rankmixer_dist.models.dcn_v2 import DCNv2

TOLERANCE = {torch.float64: 2e-14, torch.float32: 3e-6}  # seen: 2.2e-15, 3.4e-7

SHAPES = [(3, 3, 5), (1, 3, 5), (2, 1, 4)]  # B, T, D
FORMS = [{"rank": None}, {"rank": 3}, {"rank": 2, "num_experts": 3}]


def crossnet():
    """TorchRec's own, where it is installed."""
    return pytest.importorskip("torchrec.modules.crossnet")


@pytest.mark.parametrize("dtype", TOLERANCE)
@pytest.mark.parametrize(
    "rest", [{"structure": "parallel"}, {"structure": "stacked"}, {"hidden_dims": ()}], ids=lambda rest: str(rest)
)
@pytest.mark.parametrize("form", FORMS, ids=str)
@pytest.mark.parametrize(("rows", "num_tokens", "token_dim"), SHAPES)
def test_backbone_matches_reference(matches_reference, rows, num_tokens, token_dim, form, rest, dtype):
    torch.manual_seed(0)
    options = {"num_layers": 2, "hidden_dims": (6, 4), **form, **rest}
    mixture, stacked = "num_experts" in form, rest.get("structure") == "stacked"
    model = DCNv2(num_tokens=num_tokens, token_dim=token_dim, **options)
    x_BTD = torch.randn(rows, num_tokens, token_dim, dtype=torch.float64)
    matches_reference(
        model,
        lambda inputs, weights: reference.dcn_v2(inputs["x_BTD"], weights, 2, mixture, stacked),
        {"x_BTD": x_BTD},
        dtype,
        TOLERANCE[dtype],
    )
    assert model(x_BTD.to(dtype)).out_BD.shape == (rows, model.out_dim)


def network(*layers):
    return CrossNetwork(layers).double()


def assert_equal_outputs(ours, theirs):
    x_BW = torch.randn(5, 7, dtype=torch.float64)
    # Seen: 8.9e-16 on values up to 6.2.
    torch.testing.assert_close(ours(x_BW), theirs(x_BW), rtol=0, atol=8e-15)


def test_full_cross_network_is_torchrecs():
    torch.manual_seed(0)
    theirs = crossnet().CrossNet(in_features=7, num_layers=2).double()
    ours = network(CrossLayer(width=7), CrossLayer(width=7))
    for layer, kernel, bias in zip(ours.layers, theirs.kernels, theirs.bias, strict=True):
        bias.data.normal_()
        layer.up.weight.data.copy_(kernel.data)
        layer.up.bias.data.copy_(bias.data.squeeze(1))
    assert_equal_outputs(ours, theirs)


def test_low_rank_cross_network_is_torchrecs():
    torch.manual_seed(0)
    theirs = crossnet().LowRankCrossNet(in_features=7, num_layers=2, low_rank=3).double()
    ours = network(CrossLayer(width=7, rank=3), CrossLayer(width=7, rank=3))
    for layer, up, down, bias in zip(ours.layers, theirs.W_kernels, theirs.V_kernels, theirs.bias, strict=True):
        bias.data.normal_()
        layer.up.weight.data.copy_(up.data)
        layer.down.weight.data.copy_(down.data)
        layer.up.bias.data.copy_(bias.data)
    assert_equal_outputs(ours, theirs)


def test_mixture_cross_network_is_torchrecs():
    torch.manual_seed(0)
    sizes = {"in_features": 7, "num_layers": 2, "num_experts": 3, "low_rank": 2}
    theirs = crossnet().LowRankMixtureCrossNet(**sizes, activation=torch.tanh)
    theirs = theirs.double()
    ours = network(*(MixtureCrossLayer(width=7, rank=2, num_experts=3) for _ in range(2)))
    for i, layer in enumerate(ours.layers):
        theirs.bias[i].data.normal_()
        # Theirs has one gate for all layers.
        layer.gate.weight.data.copy_(torch.cat([gate.weight.data for gate in theirs.gates]))
        layer.down.weight.data.copy_(theirs.V_kernels[i].data.flatten(0, 1))
        layer.core.data.copy_(theirs.C_kernels[i].data.transpose(1, 2))
        layer.up.weight.data.copy_(theirs.U_kernels[i].data.transpose(0, 1).flatten(1))
        layer.up.bias.data.copy_(theirs.bias[i].data.squeeze(1))
    assert_equal_outputs(ours, theirs)


def test_experts_start_by_their_own_fan_in():
    torch.manual_seed(0)
    layer = MixtureCrossLayer(width=200, rank=16, num_experts=8)
    for weights, fan_in in ((layer.down.weight, 200), (layer.core, 16), (layer.up.weight, 16), (layer.up.bias, 16)):
        # Two hundred draws or more; seen: within 2 %.
        assert weights.abs().max().item() == pytest.approx(fan_in**-0.5, rel=0.05)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"structure": "serial"}, "structure 'serial' is unknown; use 'parallel' or 'stacked'"),
        ({"num_experts": 4}, "num_experts 4 needs a rank"),
        ({"num_experts": 0, "rank": 2}, "num_experts 0 must be at least 1"),
        ({"rank": 7}, r"rank 7 must lie in 1\.\.6"),
        ({"rank": 0}, r"rank 0 must lie in 1\.\.6"),
        ({"num_layers": 0}, "num_layers 0 must be at least 1"),
        ({"hidden_dims": (0,)}, r"hidden_dims \[0\]"),
    ],
)
def test_impossible_options_are_refused(options, message):
    with pytest.raises(ValueError, match=message):
        DCNv2(num_tokens=2, token_dim=3, **options)


def test_a_mixture_of_one_is_refused():
    with pytest.raises(ValueError, match="num_experts 1 is no mixture"):
        MixtureCrossLayer(width=4, rank=2, num_experts=1)
