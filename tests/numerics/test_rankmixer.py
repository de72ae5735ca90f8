import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from rankmixer_dist.layers import reference
from rankmixer_dist.layers.per_token_ffn import PerTokenFFN
from rankmixer_dist.layers.reference.rankmixer import rankmixer
from rankmixer_dist.models.rankmixer import RankMixer, RankMixerBlock

FFN_TOLERANCE = {torch.float64: 4e-15, torch.float32: 2e-6}  # seen: 4.2e-16, 2.9e-7
TOLERANCE = {torch.float64: 1e-14, torch.float32: 1e-5}  # seen: 2.6e-15, 2.8e-6

SHAPES = [(3, 3, 9, 7), (1, 3, 9, 7), (2, 1, 5, 3), (5, 4, 4, 6)]  # B, T, D, F


def randomize(module: torch.nn.Module) -> torch.nn.Module:
    """Weights that tell every parameter apart; LayerNorms would start as ones and zeros."""
    with torch.no_grad():
        for name, parameter in module.named_parameters():
            parameter.normal_(1.0 if "norm.weight" in name else 0.0, 0.4)
    return module


def test_gelu_is_the_exact_one():
    x = torch.linspace(-6, 6, 101, dtype=torch.float64)
    torch.testing.assert_close(reference.gelu(x), torch.nn.functional.gelu(x), rtol=0, atol=1e-15)


@pytest.mark.parametrize("dtype", FFN_TOLERANCE)
@pytest.mark.parametrize(("rows", "num_tokens", "token_dim", "hidden_dim"), SHAPES)
def test_per_token_ffn_matches_reference(matches_reference, rows, num_tokens, token_dim, hidden_dim, dtype):
    torch.manual_seed(0)
    matches_reference(
        PerTokenFFN(num_tokens=num_tokens, token_dim=token_dim, hidden_dim=hidden_dim),
        lambda inputs, w: torch.stack(
            [
                reference.per_token_ffn(x_TD, w["up.weight"], w["up.bias"], w["down.weight"], w["down.bias"])
                for x_TD in inputs["x_TBD"].transpose(0, 1)
            ],
            dim=1,
        ),
        {"x_TBD": torch.randn(num_tokens, rows, token_dim, dtype=torch.float64)},
        dtype,
        FFN_TOLERANCE[dtype],
    )


@pytest.mark.parametrize("dtype", TOLERANCE)
@pytest.mark.parametrize("norm", ["post", "pre"])
@pytest.mark.parametrize(("rows", "num_tokens", "token_dim", "hidden_dim"), SHAPES)
def test_backbone_matches_reference(matches_reference, rows, num_tokens, token_dim, hidden_dim, norm, dtype):
    torch.manual_seed(0)
    model = RankMixer(num_tokens=num_tokens, token_dim=token_dim, num_blocks=2, hidden_dim=hidden_dim, norm=norm)
    matches_reference(
        randomize(model),
        lambda inputs, weights: rankmixer(inputs["x_BTD"], weights, 2, norm),
        {"x_BTD": torch.randn(rows, num_tokens, token_dim, dtype=torch.float64)},
        dtype,
        TOLERANCE[dtype],
    )


def test_a_block_mixes_through_its_swappable_function():
    block = RankMixerBlock(token_dim=6, ffn=torch.nn.Identity())
    x_TBD = torch.randn(3, 2, 6)
    plain = block(x_TBD)
    block.mix = torch.zeros_like
    assert not torch.allclose(block(x_TBD), plain)


def test_impossible_sizes_are_refused():
    with pytest.raises(ValueError, match="token_dim 10 is not a multiple of the 4 tokens, .*use 8 or 12"):
        RankMixer(num_tokens=4, token_dim=10, num_blocks=1, hidden_dim=8)
    with pytest.raises(ValueError, match="num_blocks 0"):
        RankMixer(num_tokens=4, token_dim=8, num_blocks=0, hidden_dim=8)
    with pytest.raises(ValueError, match="norm 'sandwich' is unknown"):
        RankMixer(num_tokens=4, token_dim=8, num_blocks=1, hidden_dim=8, norm="sandwich")


def test_per_token_ffns_start_like_independent_linear_layers():
    torch.manual_seed(0)
    model = RankMixer(num_tokens=3, token_dim=192, num_blocks=1, hidden_dim=384)
    for linear, sizes in ((model.blocks[0].ffn.up, (192, 384)), (model.blocks[0].ffn.down, (384, 192))):
        for t in range(3):
            twin = torch.nn.Linear(*sizes)
            # Seen over ten seeds: 0.6 % between two such draws, 12 % of the few biases.
            assert linear.weight[t].std().item() == pytest.approx(twin.weight.std().item(), rel=0.02)
            assert linear.bias[t].std().item() == pytest.approx(twin.bias.std().item(), rel=0.3)


@pytest.mark.parametrize("norm", ["post", "pre"])
def test_mixing_takes_no_copy_of_its_own_on_other_devices_than_a_cpu(norm):
    """Counted on the meta device: of a block without FFN, one addition is all that touches memory beside the norms."""
    with torch.device("meta"):
        block = RankMixerBlock(token_dim=6, ffn=torch.nn.Identity(), norm=norm)
        x_TBD = torch.empty(3, 2, 6)
    seen = []

    class Operators(TorchDispatchMode):
        def __torch_dispatch__(self, func, types, args=(), kwargs=None):
            if not func.is_view:
                seen.append(func.overloadpacket.__name__)
            return func(*args, **(kwargs or {}))

    with torch.no_grad(), Operators():
        block(x_TBD)
    assert seen.count("add") == 2  # the other is the FFN's residual
    assert "clone" not in seen and "copy_" not in seen
