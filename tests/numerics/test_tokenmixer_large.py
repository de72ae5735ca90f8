import pytest
import torch
from torch.nn import functional as F

from rankmixer_dist.layers.per_token_ffn import PerTokenSwiGLU
from rankmixer_dist.layers.reference import tokenmixer_large as reference
from rankmixer_dist.layers.token_mixing import mix_tokens
from rankmixer_dist.models.tokenmixer_large import TokenMixerLarge, TokenMixerLargeBlock

FFN_TOLERANCE = {torch.float64: 2e-15, torch.float32: 1e-6}  # seen: 2.1e-16, 1.4e-7
TOLERANCE = {torch.float64: 1e-14, torch.float32: 1e-5}  # seen: 3.2e-15, 3.0e-6

# B, T, D, F, H, L, n
CASES = [
    (3, 3, 9, 7, 3, 3, 2),
    (1, 3, 9, 7, 3, 1, 2),  # nothing between the stages
    (2, 1, 5, 3, 1, 4, 2),  # the residual does not go into the last block
    (2, 4, 6, 5, 3, 5, 2),  # fewer heads than tokens
    (2, 3, 8, 4, 4, 4, 1),  # more
    (2, 3, 5, 4, 1, 4, 3),  # one mixed token as wide as all
    (2, 2, 4, 4, 2, 3, 0),
]


def randomize(module):
    """Weights that tell every parameter apart; norms would start as ones and down projections near zero."""
    with torch.no_grad():
        for name, parameter in module.named_parameters():
            parameter.normal_(1.0 if "norm.weight" in name else 0.0, 0.4)
    return module


def silence(*layers):
    """Down projections of zero, so that the layers give zero."""
    with torch.no_grad():
        for layer in layers:
            layer.down.weight.zero_()


@pytest.mark.parametrize("dtype", FFN_TOLERANCE)
@pytest.mark.parametrize(("rows", "num_tokens", "token_dim", "hidden_dim"), [(3, 3, 5, 7), (1, 1, 3, 2), (2, 4, 1, 1)])
def test_swiglu_matches_reference(matches_reference, rows, num_tokens, token_dim, hidden_dim, dtype):
    torch.manual_seed(0)
    matches_reference(
        randomize(PerTokenSwiGLU(num_tokens=num_tokens, token_dim=token_dim, hidden_dim=hidden_dim)),
        lambda inputs, w: torch.stack(
            [
                reference.per_token_swiglu(x_TD, w["gate.weight"], w["up.weight"], w["down.weight"])
                for x_TD in inputs["x_TBD"].transpose(0, 1)
            ],
            dim=1,
        ),
        {"x_TBD": torch.randn(num_tokens, rows, token_dim, dtype=torch.float64)},
        dtype,
        FFN_TOLERANCE[dtype],
    )


def test_the_gate_is_swish_and_not_gelu():
    layer = PerTokenSwiGLU(num_tokens=1, token_dim=1, hidden_dim=1)
    with torch.no_grad():
        for linear in (layer.gate, layer.up, layer.down):
            linear.weight.fill_(1.0)
    x_TBD = torch.linspace(-3, 3, 13).view(1, 13, 1)
    # Seen: 0.
    torch.testing.assert_close(layer(x_TBD), x_TBD * F.silu(x_TBD), rtol=0, atol=1e-6)


class AllStages(TokenMixerLarge):
    """Gives the auxiliary stages, then the output."""

    def forward(self, x_BTD):
        pooled = super().forward(x_BTD)
        return torch.stack([*pooled.stages, pooled.out_BD])


@pytest.mark.parametrize("dtype", TOLERANCE)
@pytest.mark.parametrize(
    ("rows", "num_tokens", "token_dim", "hidden_dim", "num_heads", "num_blocks", "inter_residual"), CASES
)
def test_backbone_matches_reference(
    matches_reference, rows, num_tokens, token_dim, hidden_dim, num_heads, num_blocks, inter_residual, dtype
):
    torch.manual_seed(0)
    model = TokenMixerLarge(
        num_tokens=num_tokens,
        token_dim=token_dim,
        num_blocks=num_blocks,
        hidden_dim=hidden_dim,
        num_heads=num_heads,
        inter_residual=inter_residual,
    )
    sizes = (num_blocks, num_heads, inter_residual)
    inputs = {"x_BTD": torch.randn(rows, num_tokens, token_dim, dtype=torch.float64)}
    matches_reference(
        randomize(model), lambda x, w: reference.stages(x["x_BTD"], w, *sizes)[-1], inputs, dtype, TOLERANCE[dtype]
    )
    model.__class__ = AllStages
    matches_reference(
        model, lambda x, w: torch.stack(reference.stages(x["x_BTD"], w, *sizes)), inputs, dtype, TOLERANCE[dtype]
    )


@pytest.mark.parametrize(("num_blocks", "inter_residual", "auxiliary"), [(4, 2, 1), (5, 2, 2), (6, 3, 1), (4, 0, 0)])
def test_number_of_auxiliary_stages(num_blocks, inter_residual, auxiliary):
    model = TokenMixerLarge(num_tokens=2, token_dim=4, num_blocks=num_blocks, inter_residual=inter_residual)
    assert model.num_auxiliary == auxiliary == len(model(torch.randn(3, 2, 4)).stages)


def test_the_first_residual_is_in_the_mixed_space():
    # With a silent mixed FFN the reverted tokens are the tokens themselves.
    block = TokenMixerLargeBlock(num_tokens=4, token_dim=6, num_heads=3, hidden_dim=5, down_init=1.0)
    silence(block.mixed_ffn)
    x_TBD = torch.randn(4, 2, 6)
    expected = x_TBD + block.reverted_ffn(block.reverted_norm(x_TBD))
    torch.testing.assert_close(block(x_TBD), expected, rtol=0, atol=1e-6)  # seen: 0
    # And with a silent second one the block is the identity.
    silence(block.reverted_ffn)
    assert torch.equal(block(x_TBD), x_TBD)


def test_without_ffns_it_is_the_mean_of_normed_tokens():
    # A final norm; the mean over all tokens, not one of them.
    model = TokenMixerLarge(num_tokens=3, token_dim=6, num_blocks=1)
    silence(model.blocks[0].mixed_ffn, model.blocks[0].reverted_ffn)
    x_BTD = torch.randn(4, 3, 6)
    # Seen: 0.
    torch.testing.assert_close(model(x_BTD).out_BD, F.rms_norm(x_BTD, (6,), eps=1e-5).mean(dim=1), rtol=0, atol=1e-6)


def test_starts_near_the_identity_with_only_the_down_projections_small():
    torch.manual_seed(0)
    model = TokenMixerLarge(num_tokens=5, token_dim=200, num_heads=4, num_blocks=2, hidden_dim=300)
    for block in model.blocks:
        for ffn, tokens, dim in ((block.mixed_ffn, 4, 250), (block.reverted_ffn, 5, 200)):
            assert ffn.gate.weight.shape == ffn.up.weight.shape == (tokens, dim, 300)
            for t in range(tokens):
                # Per slice, whatever the other dimensions; seen over ten seeds: 0.6 %.
                for linear, fan_in, scale in ((ffn.gate, dim, 1), (ffn.up, dim, 1), (ffn.down, 300, 0.01)):
                    std = scale * (3 * fan_in) ** -0.5
                    assert linear.weight[t].std().item() == pytest.approx(std, rel=0.02)
    x_TBD = torch.randn(5, 8, 200)
    difference = model.blocks[0](x_TBD) - x_TBD
    # Seen over ten seeds: 0.0010 to 0.0011, of tokens with deviation 1.
    assert 0 < difference.std().item() < 0.005


def test_there_are_no_biases():
    model = TokenMixerLarge(num_tokens=2, token_dim=4)
    assert not [name for name, _ in model.named_parameters() if "bias" in name]


def test_a_width_that_the_heads_do_not_divide_is_refused_and_never_padded():
    with pytest.raises(ValueError, match="token_dim 256 is not a multiple of the 5 tokens, .*use 255 or 260"):
        TokenMixerLarge(num_tokens=5, token_dim=256)
    model = TokenMixerLarge(num_tokens=5, token_dim=256, num_heads=4, num_blocks=1)
    assert model.blocks[0].mix(torch.zeros(5, 1, 256)).shape == (4, 1, 320)
    assert model.out_dim == 256


def test_a_block_exchanges_tokens_through_its_swappable_functions():
    block = TokenMixerLargeBlock(num_tokens=2, token_dim=4, num_heads=2, hidden_dim=3, down_init=1.0)
    x_TBD = torch.randn(2, 3, 4)
    plain = block(x_TBD)
    block.mix = torch.zeros_like
    assert not torch.allclose(block(x_TBD), plain)
    block.mix, block.revert = mix_tokens, torch.zeros_like
    assert torch.equal(block(x_TBD), x_TBD)


def test_impossible_values_are_refused():
    sizes = {"num_tokens": 4, "token_dim": 8}
    for option, match in (
        ({"num_heads": 3}, "token_dim 8 is not a multiple of the 3 heads, .*use 6 or 9"),
        ({"num_heads": 0}, "num_heads 0"),
        ({"num_blocks": 0}, "num_blocks 0"),
        ({"hidden_dim": 0}, "at least 1"),
        ({"inter_residual": -1}, "inter_residual -1"),
        ({"down_init": 1.5}, "down_init 1.5"),
    ):
        with pytest.raises(ValueError, match=match):
            TokenMixerLarge(**sizes, **option)


def test_the_default_block_has_the_weights_of_a_rankmixer_block_with_k_3():
    model = TokenMixerLarge(num_tokens=2, token_dim=8, num_blocks=1)
    matrices = sum(p.numel() for p in model.parameters() if p.dim() == 3)
    assert matrices == 2 * 3 * 2 * 8**2
