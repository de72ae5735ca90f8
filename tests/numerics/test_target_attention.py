from itertools import accumulate

import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensorMode

from rankmixer_dist.layers import reference
from rankmixer_dist.layers.target_attention import MeanPooling, TargetAttention

TOLERANCE = {torch.float64: 1e-14, torch.float32: 5e-6}  # seen: 2.8e-15, 1.0e-6

LENGTHS = [[4, 0, 2], [0, 0, 0], [3], [0], []]


def unit_layers(weights, num_hidden):
    names = ["first", *(f"hidden.{i}" for i in range(num_hidden - 1)), "score"]
    return [(weights[f"{name}.weight"], weights[f"{name}.bias"]) for name in names]


def batch(lengths, dim=5):
    return {
        "query_BD": torch.randn(len(lengths), dim, dtype=torch.float64),
        "keys_ND": torch.randn(sum(lengths), dim, dtype=torch.float64),
        "offsets": torch.tensor([0, *accumulate(lengths)], dtype=torch.int32),
    }


@pytest.mark.parametrize("dtype", TOLERANCE)
@pytest.mark.parametrize("softmax", [False, True])
@pytest.mark.parametrize("hidden_dims", [(6,), (7, 3)])
@pytest.mark.parametrize("lengths", [[4, 0, 2], [3], [0, 1, 30]])
def test_matches_reference(matches_reference, lengths, hidden_dims, softmax, dtype):
    torch.manual_seed(0)
    matches_reference(
        TargetAttention(dim=5, hidden_dims=hidden_dims, softmax=softmax),
        lambda inputs, weights: reference.target_attention(
            inputs["query_BD"], inputs["keys_ND"], lengths, unit_layers(weights, len(hidden_dims)), softmax
        ),
        batch(lengths),
        dtype,
        TOLERANCE[dtype],
    )


def pooling_named(name):
    return MeanPooling() if name == "mean" else TargetAttention(dim=5, hidden_dims=(6,), softmax=name == "softmax")


@pytest.mark.parametrize("pooling", ["attention", "softmax", "mean"])
@pytest.mark.parametrize("lengths", LENGTHS)
def test_rows_without_events_give_zeros_and_no_gradient_is_lost(pooling, lengths):
    torch.manual_seed(0)
    module = pooling_named(pooling)
    inputs = batch(lengths)
    query_BD = inputs["query_BD"].float().requires_grad_()
    keys_ND = inputs["keys_ND"].float().requires_grad_()
    pooled_BD = module(query_BD, keys_ND, inputs["offsets"])
    assert pooled_BD.shape == query_BD.shape
    gradients = torch.autograd.grad(
        pooled_BD.square().sum() + pooled_BD.sum(), [query_BD, keys_ND, *module.parameters()], allow_unused=True
    )
    assert all(g.isfinite().all() for g in gradients if g is not None)
    assert (gradients[1] != 0).all()
    for b, length in enumerate(lengths):
        assert (pooled_BD[b] == 0).all() == (length == 0)


@pytest.mark.parametrize("pooling", ["attention", "softmax", "mean"])
def test_a_row_depends_on_its_own_events_alone(pooling):
    torch.manual_seed(0)
    module = pooling_named(pooling).double()
    inputs = batch([2, 0, 3])
    before_BD = module(**inputs)
    inputs["keys_ND"][:2] = 1e4
    inputs["query_BD"][:2] = -1e4
    after_BD = module(**inputs)
    assert torch.equal(after_BD[1:], before_BD[1:])
    assert not torch.equal(after_BD[0], before_BD[0])


@pytest.mark.parametrize("pooling", ["attention", "softmax", "mean"])
def test_pooling_asks_the_device_for_no_value(pooling):
    with FakeTensorMode() as mode:
        module = pooling_named(pooling)
        inputs = {
            name: mode.from_tensor(x.float() if x.is_floating_point() else x) for name, x in batch([2, 0]).items()
        }
        inputs["keys_ND"].requires_grad_()
        module(**inputs).sum().backward()


def test_the_divided_first_layer_holds_in_bf16():
    torch.manual_seed(0)
    attention = TargetAttention(dim=16, hidden_dims=(32, 16)).bfloat16()
    query_BD, keys_ND, offsets = torch.randn(64, 16), torch.randn(64 * 20, 16), torch.arange(65) * 20
    exact = attention.double()(query_BD.bfloat16().double(), keys_ND.bfloat16().double(), offsets)
    rounded = attention.bfloat16()(query_BD.bfloat16(), keys_ND.bfloat16(), offsets)
    error = (rounded.double() - exact).square().mean().sqrt() / exact.square().mean().sqrt()
    # Seen: 0.0042; the concatenated form: 0.0034.
    assert error < 0.02


@pytest.mark.parametrize("dtype", TOLERANCE)
@pytest.mark.parametrize("lengths", [[4, 0, 2], [3]])
def test_mean_pooling_matches_reference(dtype, lengths):
    torch.manual_seed(0)
    inputs = batch(lengths)
    keys_ND = inputs["keys_ND"].to(dtype).requires_grad_()
    expected_keys = keys_ND.detach().double().requires_grad_()
    expected = reference.mean_pooling(expected_keys, lengths)
    pooled = MeanPooling()(None, keys_ND, inputs["offsets"])
    # Seen: 1.1e-16, 6.0e-8.
    tolerance = {"rtol": 0, "atol": 1e-15 if dtype == torch.float64 else 5e-7}
    torch.testing.assert_close(pooled.double(), expected, **tolerance)
    cotangent = torch.randn_like(expected)
    (gradient,) = torch.autograd.grad(pooled, keys_ND, cotangent.to(dtype))
    (expected_gradient,) = torch.autograd.grad(expected, expected_keys, cotangent)
    torch.testing.assert_close(gradient.double(), expected_gradient, **tolerance)


@pytest.mark.parametrize("softmax", [False, True])
def test_the_gradients_own_gradients_are_right(softmax):
    torch.manual_seed(0)
    attention = TargetAttention(dim=3, hidden_dims=(4,), softmax=softmax).double()
    inputs = batch([2, 0, 3], dim=3)
    query_BD, keys_ND = inputs["query_BD"].requires_grad_(), inputs["keys_ND"].requires_grad_()
    assert torch.autograd.gradgradcheck(lambda q, k: attention(q, k, inputs["offsets"]), (query_BD, keys_ND))


@pytest.mark.parametrize(("dim", "hidden_dims"), [(5, ()), (0, (4,)), (5, (4, 0))])
def test_impossible_sizes_are_refused(dim, hidden_dims):
    with pytest.raises(ValueError, match="at least 1"):
        TargetAttention(dim=dim, hidden_dims=hidden_dims)
