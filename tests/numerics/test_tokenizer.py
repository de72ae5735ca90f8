import pytest
import torch

from rankmixer_dist.layers import reference
from rankmixer_dist.layers.tokenizer import GroupTokenizer

TOLERANCE = {torch.float64: 1e-15, torch.float32: 1e-6}  # seen: 2.0e-16, 1.0e-7

CASES = [
    ((4, 7, 4, 2), (1, 2, 3, 1)),  # two groups share a width, and bucket order is not token order
    ((5, 5), (2, 1)),  # one bucket
    ((3,), (1,)),
    ((9, 1), (1, 3)),
]


def weights_by_token(group_dims, group_tokens, weights):
    """The stacked weights as one [w_g, D] matrix and one bias a token, in token order."""
    widths = sorted(set(group_dims))
    used = dict.fromkeys(widths, 0)
    matrices, biases = [], []
    for width, tokens in zip(group_dims, group_tokens, strict=True):
        bucket = f"projections.{widths.index(width)}."
        for _ in range(tokens):
            matrices.append(weights[bucket + "weight"][used[width]])
            biases.append(weights[bucket + "bias"][used[width]])
            used[width] += 1
    return matrices, torch.stack(biases)


@pytest.mark.parametrize("dtype", TOLERANCE)
@pytest.mark.parametrize(("group_dims", "group_tokens"), CASES)
@pytest.mark.parametrize("rows", [1, 3])
def test_matches_reference(matches_reference, group_dims, group_tokens, rows, dtype):
    torch.manual_seed(0)
    tokenizer = GroupTokenizer(group_dims=group_dims, group_tokens=group_tokens, token_dim=5)
    matches_reference(
        tokenizer,
        lambda inputs, weights: reference.tokenize(
            inputs["x_BW"], group_dims, group_tokens, *weights_by_token(group_dims, group_tokens, weights)
        ),
        {"x_BW": torch.randn(rows, sum(group_dims), dtype=torch.float64)},
        dtype,
        TOLERANCE[dtype],
    )


def test_holds_no_weight_that_is_not_used():
    tokenizer = GroupTokenizer(group_dims=(2, 9, 4), group_tokens=(2, 1, 1), token_dim=6)
    assert sum(p.numel() for p in tokenizer.parameters()) == ((2 + 1) * 2 + (9 + 1) + (4 + 1)) * 6


@pytest.mark.parametrize("group_dims", [(4, 4), (4, 6)])
def test_tokens_lie_token_major_for_the_backbone(group_dims):
    tokens_BTD = GroupTokenizer(group_dims=group_dims, group_tokens=(1, 1), token_dim=6)(
        torch.randn(3, sum(group_dims))
    )
    assert tokens_BTD.shape == (3, 2, 6)
    assert tokens_BTD.transpose(0, 1).is_contiguous()


@pytest.mark.parametrize(
    ("group_dims", "group_tokens", "message"),
    [
        ((4, 4), (1,), "not 2 and 1"),
        ((), (), "not 0 and 0"),
        ((4, 0), (1, 1), "at least 1"),
        ((4,), (0,), "at least 1"),
    ],
)
def test_impossible_groups_are_refused(group_dims, group_tokens, message):
    with pytest.raises(ValueError, match=message):
        GroupTokenizer(group_dims=group_dims, group_tokens=group_tokens, token_dim=4)
