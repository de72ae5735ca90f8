import itertools

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from rankmixer_dist.layers import reference
from rankmixer_dist.layers.reference import tokenmixer_large
from rankmixer_dist.layers.token_mixing import add_mixed, mix_tokens, revert_tokens

all_shapes = pytest.mark.parametrize(
    "shape", list(itertools.product((1, 2, 3, 4, 7), (1, 3), (1, 2, 5)))
)  # T, B, D / T


@all_shapes
def test_is_a_permutation_of_each_row_and_its_own_inverse(shape):
    num_tokens, rows, width = shape
    x_TBD = torch.arange(num_tokens * rows * num_tokens * width).view(num_tokens, rows, num_tokens * width)
    mixed_TBD = mix_tokens(x_TBD)
    assert mixed_TBD.shape == x_TBD.shape
    for b in range(rows):
        assert torch.equal(mixed_TBD[:, b].flatten().sort().values, x_TBD[:, b].flatten().sort().values)
    assert torch.equal(mix_tokens(mixed_TBD), x_TBD)
    if num_tokens > 1:
        assert not torch.equal(mixed_TBD, x_TBD)


@all_shapes
def test_equals_the_paper_value_by_value_from_any_memory_layout(shape):
    num_tokens, rows, width = shape
    x_BTD = torch.randn(rows, num_tokens, num_tokens * width)
    expected = torch.stack([reference.mix_tokens(x_TD) for x_TD in x_BTD])
    mixed_TBD = mix_tokens(x_BTD.transpose(0, 1))
    assert torch.equal(mixed_TBD.transpose(0, 1), expected)
    assert mixed_TBD.is_contiguous()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("layout", ["token-major", "row-major"])
@pytest.mark.parametrize("same", [True, False])
@pytest.mark.parametrize("shape", [(1, 3, 2), (2, 1, 5), (4, 3, 1), (7, 3, 5)])
def test_the_residual_with_its_mixing_is_that_of_two_passes_to_the_last_bit(shape, same, layout, dtype):
    num_tokens, rows, width = shape
    order = (num_tokens, rows) if layout == "token-major" else (rows, num_tokens)

    def leaf() -> torch.Tensor:
        x = torch.randn(*order, num_tokens * width).to(dtype)
        return (x if layout == "token-major" else x.transpose(0, 1)).requires_grad_()

    x_TBD = leaf()
    read_TBD = x_TBD if same else leaf()
    leaves = [x_TBD] if same else [x_TBD, read_TBD]
    gradient_TBD = torch.randn(x_TBD.shape).to(dtype)
    found, expected = add_mixed(x_TBD, read_TBD), x_TBD + mix_tokens(read_TBD)
    assert torch.equal(found, expected)
    for ours, theirs in zip(
        torch.autograd.grad(found, leaves, gradient_TBD),
        torch.autograd.grad(expected, leaves, gradient_TBD),
        strict=True,
    ):
        assert torch.equal(ours, theirs)


def test_the_residual_with_its_mixing_has_second_derivatives():
    x_TBD = torch.randn(3, 2, 6, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradgradcheck(lambda x: add_mixed(x, x) ** 2, x_TBD)


def test_its_gradient_is_the_mixing_of_the_gradient():
    x_TBD = torch.randn(3, 2, 6, requires_grad=True)
    cotangent = torch.randn(3, 2, 6)
    (gradient,) = torch.autograd.grad(mix_tokens(x_TBD), x_TBD, cotangent)
    assert torch.equal(gradient, mix_tokens(cotangent))


sizes = st.integers(1, 9)


@given(num_tokens=sizes, num_heads=sizes, rows=st.integers(0, 4), width=st.integers(1, 5))
def test_with_any_number_of_heads_it_is_a_permutation_that_reverting_undoes(num_tokens, num_heads, rows, width):
    token_dim = num_heads * width
    x_TBD = torch.arange(num_tokens * rows * token_dim).view(num_tokens, rows, token_dim)
    mixed_HBE = mix_tokens(x_TBD, num_heads)
    assert mixed_HBE.shape == (num_heads, rows, num_tokens * width)
    for b in range(rows):  # every value once, and none from another row
        assert torch.equal(mixed_HBE[:, b].flatten().sort().values, x_TBD[:, b].flatten().sort().values)
    assert torch.equal(revert_tokens(mixed_HBE, num_tokens), x_TBD)
    if num_heads == num_tokens:
        assert torch.equal(mix_tokens(mixed_HBE), x_TBD)
        assert torch.equal(mixed_HBE, mix_tokens(x_TBD))


@given(num_tokens=sizes, num_heads=sizes, width=st.integers(1, 4))
def test_mixing_and_reverting_equal_the_paper_value_by_value(num_tokens, num_heads, width):
    x_TD = torch.arange(num_tokens * num_heads * width).view(num_tokens, -1)
    mixed_HE = reference.mix_tokens(x_TD, num_heads)
    assert torch.equal(mix_tokens(x_TD[:, None], num_heads).squeeze(1), mixed_HE)
    assert torch.equal(tokenmixer_large.revert_tokens(mixed_HE, num_tokens), x_TD)


@pytest.mark.parametrize(("token_dim", "use"), [(10, "use 9 or 12"), (2, "use 3")])
def test_a_width_that_does_not_split_into_heads_is_refused(token_dim, use):
    with pytest.raises(ValueError, match=use):
        mix_tokens(torch.zeros(3, 2, token_dim))


def test_heads_that_do_not_divide_the_width_are_refused():
    with pytest.raises(ValueError, match="token_dim 10 is not a multiple of the 4 heads, .*use 8 or 12"):
        mix_tokens(torch.zeros(3, 2, 10), 4)
    with pytest.raises(ValueError, match="num_heads 0"):
        mix_tokens(torch.zeros(3, 2, 10), 0)
