import pytest
import torch

from rankmixer_dist.layers.reference import attention as reference
from rankmixer_dist.models.hhft import HHFT

TOLERANCE = {torch.float64: 1e-14, torch.float32: 6e-6}  # seen: 1.8e-15, 6.7e-7

# B, T, D, options
CASES = [
    (3, 3, 8, {}),
    (1, 4, 9, {"num_heads": 3, "hidden_dim": 7, "rank": 5, "num_hetero_blocks": 1}),
    (2, 1, 5, {"num_heads": 1, "num_hetero_blocks": 1, "num_hiformer_blocks": 2}),
    (3, 2, 7, {"num_heads": 2, "head_dim": 3, "num_hetero_blocks": 1, "rank": 3}),
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
@pytest.mark.parametrize(("rows", "num_tokens", "token_dim", "options"), CASES)
def test_backbone_matches_reference(matches_reference, rows, num_tokens, token_dim, options, norm, dtype):
    torch.manual_seed(0)
    model = HHFT(num_tokens=num_tokens, token_dim=token_dim, norm=norm, **options)
    kinds = ["per_token"] * model.num_hetero_blocks + ["composite"] * model.num_hiformer_blocks
    matches_reference(
        randomize_norms(model),
        lambda inputs, weights: reference.attention_stack(inputs["x_BTD"], weights, kinds, model.num_heads, norm),
        {"x_BTD": torch.randn(rows, num_tokens, token_dim, dtype=torch.float64)},
        dtype,
        TOLERANCE[dtype],
    )


def test_memory_layout_of_the_tokens_does_not_matter():
    torch.manual_seed(0)
    model = HHFT(num_tokens=3, token_dim=8)
    x_BTD = torch.randn(4, 3, 8)
    token_major = x_BTD.transpose(0, 1).contiguous().transpose(0, 1)
    torch.testing.assert_close(model(x_BTD), model(token_major), rtol=0, atol=1e-6)


def test_bf16_backbone_pools_in_fp32():
    torch.manual_seed(0)
    model = HHFT(num_tokens=4, token_dim=32, rank=16).bfloat16()
    x_BTD = torch.randn(8, 4, 32).bfloat16()
    pooled_BD = model(x_BTD)
    assert pooled_BD.dtype == torch.float32
    expected = model.float()(x_BTD.float())
    # Seen: 0.013 on values up to 1.5.
    torch.testing.assert_close(pooled_BD, expected, rtol=0, atol=0.05)


def test_impossible_sizes_are_refused():
    with pytest.raises(ValueError, match="token_dim 9 is not a multiple of the 4 heads; .*give head_dim"):
        HHFT(num_tokens=4, token_dim=9)
    with pytest.raises(ValueError, match="head_dim 0"):
        HHFT(num_tokens=4, token_dim=8, head_dim=0)
    with pytest.raises(ValueError, match="num_heads 0"):
        HHFT(num_tokens=4, token_dim=8, num_heads=0)
    with pytest.raises(ValueError, match="num_tokens 0"):
        HHFT(num_tokens=0, token_dim=8)
    with pytest.raises(ValueError, match="hidden_dim 0"):
        HHFT(num_tokens=4, token_dim=8, hidden_dim=0)
    with pytest.raises(ValueError, match="norm 'sandwich' is unknown"):
        HHFT(num_tokens=4, token_dim=8, norm="sandwich")
    with pytest.raises(ValueError, match="num_hetero_blocks 0 .*use Hiformer"):
        HHFT(num_tokens=4, token_dim=8, num_hetero_blocks=0)
    with pytest.raises(ValueError, match="num_hiformer_blocks 0 .*use HeteroAttention"):
        HHFT(num_tokens=4, token_dim=8, num_hiformer_blocks=0)
    with pytest.raises(ValueError, match=r"rank 33 must be in 1\.\.32"):
        HHFT(num_tokens=4, token_dim=8, rank=33)
    with pytest.raises(ValueError, match="rank 0"):
        HHFT(num_tokens=4, token_dim=8, rank=0)
