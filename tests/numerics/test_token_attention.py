"""The attention layers by themselves: against torch's where both coincide, and their initial weights."""

import pytest
import torch
from torch import nn

from rankmixer_dist.layers.token_attention import CompositeAttention, PerTokenAttention, attend
from rankmixer_dist.models.autoint import InteractingLayer

T, B, D, H = 5, 3, 12, 3
TOLERANCE = 3e-15  # seen: 3.3e-16 on outputs up to 1.2


def torch_attention() -> nn.MultiheadAttention:
    """With biases that are not zero, in fp64."""
    torch.manual_seed(0)
    attention = nn.MultiheadAttention(D, H, batch_first=True, dtype=torch.float64)
    with torch.no_grad():
        for bias in (attention.in_proj_bias, attention.out_proj.bias):
            bias.normal_(0.0, 0.4)
    return attention


def by_head(in_proj: torch.Tensor) -> torch.Tensor:
    """Rows ordered (q|k|v, head, value), as torch has them -> (head, q|k|v, value)."""
    return in_proj.unflatten(0, (3, H, -1)).transpose(0, 1).flatten(0, 2)


def tie_output(layer: PerTokenAttention | CompositeAttention, theirs: nn.MultiheadAttention) -> None:
    layer.out.weight.copy_(theirs.out_proj.weight.T.expand(T, -1, -1))
    layer.out.bias.copy_(theirs.out_proj.bias.expand(T, -1))


def assert_same(layer: nn.Module, theirs: nn.MultiheadAttention) -> None:
    """Outputs and gradients of the input."""
    x_BTD = torch.randn(B, T, D, dtype=torch.float64, requires_grad=True)
    expected = theirs(x_BTD, x_BTD, x_BTD, need_weights=False)[0]
    actual = layer(x_BTD.transpose(0, 1)).transpose(0, 1)
    torch.testing.assert_close(actual, expected, rtol=0, atol=TOLERANCE)
    cotangent = torch.randn_like(expected)
    right = torch.autograd.grad(expected, x_BTD, cotangent)
    torch.testing.assert_close(torch.autograd.grad(actual, x_BTD, cotangent), right, rtol=0, atol=2 * TOLERANCE)


def test_per_token_attention_with_tied_weights_is_torchs():
    theirs = torch_attention()
    layer = PerTokenAttention(num_tokens=T, token_dim=D, num_heads=H, head_dim=D // H).double()
    with torch.no_grad():
        layer.qkv.weight.copy_(by_head(theirs.in_proj_weight).T.expand(T, -1, -1))
        layer.qkv.bias.copy_(by_head(theirs.in_proj_bias).expand(T, -1))
        tie_output(layer, theirs)
    assert_same(layer, theirs)


@pytest.mark.parametrize("rank", [None, T * D])
def test_composite_attention_of_equal_diagonal_blocks_is_torchs(rank):
    theirs = torch_attention()
    layer = CompositeAttention(num_tokens=T, token_dim=D, num_heads=H, head_dim=D // H, rank=rank).double()
    with torch.no_grad():
        maps_3HdD = theirs.in_proj_weight.unflatten(0, (3, H, -1))
        same_token = torch.eye(T, dtype=torch.float64)
        layer.up.weight.copy_(torch.einsum("nhdi,st->nsihtd", maps_3HdD, same_token).flatten(3).flatten(1, 2))
        layer.up.bias.copy_(theirs.in_proj_bias.unflatten(0, (3, H, 1, -1)).expand(-1, -1, T, -1).flatten(1))
        if rank:
            layer.down.weight.copy_(torch.eye(T * D, dtype=torch.float64).repeat(3, 1))
        tie_output(layer, theirs)
    assert_same(layer, theirs)


def test_interacting_layer_is_torchs_attention_between_residual_and_relu():
    theirs = torch_attention()
    layer = InteractingLayer(in_dim=D, num_heads=H, head_dim=D // H, scaled=True).double()
    with torch.no_grad():
        theirs.in_proj_bias.zero_()
        theirs.out_proj.bias.zero_()
        theirs.out_proj.weight.copy_(torch.eye(D))
        residual_DD = torch.randn(D, D, dtype=torch.float64)
        parts_H4dD = torch.cat([theirs.in_proj_weight, residual_DD]).unflatten(0, (4, H, -1)).transpose(0, 1)
        layer.projections.weight.copy_(parts_H4dD.flatten(0, 2))
    x_BTD = torch.randn(B, T, D, dtype=torch.float64)
    expected = (theirs(x_BTD, x_BTD, x_BTD, need_weights=False)[0] + x_BTD @ residual_DD.T).relu()
    # Seen: 1.8e-15 on values up to 10.
    torch.testing.assert_close(layer(x_BTD.transpose(0, 1)).transpose(0, 1), expected, rtol=0, atol=1e-14)


def test_attend_is_torchs_function_and_unscaled_leaves_the_root_out():
    query, key, value = torch.randn(3, 4, T, 9, dtype=torch.float64).unbind()
    theirs = nn.functional.scaled_dot_product_attention
    torch.testing.assert_close(attend(query, key, value), theirs(query, key, value), rtol=0, atol=1e-14)
    unscaled = theirs(query, key, value, scale=1.0)
    torch.testing.assert_close(attend(query, key, value, scaled=False), unscaled, rtol=0, atol=1e-14)


def test_every_map_starts_like_a_linear_layer_of_its_own():
    torch.manual_seed(0)
    per_token = PerTokenAttention(num_tokens=4, token_dim=25, num_heads=2, head_dim=50)
    full = CompositeAttention(num_tokens=4, token_dim=25, num_heads=2, head_dim=50)
    low = CompositeAttention(num_tokens=4, token_dim=25, num_heads=2, head_dim=50, rank=16)
    fan_in = [
        (per_token.qkv.weight, 25),
        (per_token.out.weight, 100),
        (full.up.weight, 100),
        (full.out.weight, 100),
        (low.down.weight, 100),
        (low.up.weight, 16),
    ]
    for weight, width in fan_in:
        # U(-a, a) with a = 1/sqrt(width) has the standard deviation a / sqrt(3).
        assert float(weight.detach().std()) == pytest.approx((3 * width) ** -0.5, rel=0.03)
