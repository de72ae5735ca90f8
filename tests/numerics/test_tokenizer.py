import pytest
import torch

from rankmixer_dist.layers import reference
from rankmixer_dist.layers.reference import tokenizer as mlp_reference
from rankmixer_dist.layers.tokenizer import AutoSplitTokenizer, ChunkTokenizer, GroupTokenizer

TOLERANCE = {torch.float64: 1e-15, torch.float32: 1e-6}  # seen: 2.0e-16, 1.0e-7
MLP_TOLERANCE = {torch.float64: 4e-15, torch.float32: 4e-6}  # seen: 7.2e-16, 9.0e-7

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


def groups_of(x_BW, group_dims):
    """The groups of a row, of which every second comes in two parts."""
    groups = x_BW.split(list(group_dims), dim=1)
    return [[x[:, :1], x[:, 1:]] if g % 2 and x.shape[1] > 1 else [x] for g, x in enumerate(groups)]


class OfRow(torch.nn.Module):
    """A tokenizer that takes its groups side by side, for `matches_reference`."""

    def __init__(self, tokenizer, group_dims):
        super().__init__()
        self.tokenizer, self.group_dims = tokenizer, group_dims

    def forward(self, x_BW):
        return self.tokenizer(groups_of(x_BW, self.group_dims))


def of_tokenizer(weights):
    """Those of an `OfRow` by their names in its tokenizer."""
    return {name.removeprefix("tokenizer."): weight for name, weight in weights.items()}


@pytest.mark.parametrize("dtype", TOLERANCE)
@pytest.mark.parametrize(("group_dims", "group_tokens"), CASES)
@pytest.mark.parametrize("rows", [1, 3])
def test_matches_reference(matches_reference, group_dims, group_tokens, rows, dtype):
    torch.manual_seed(0)
    tokenizer = GroupTokenizer(group_dims=group_dims, group_tokens=group_tokens, token_dim=5)
    matches_reference(
        OfRow(tokenizer, group_dims),
        lambda inputs, weights: reference.tokenize(
            inputs["x_BW"], group_dims, group_tokens, *weights_by_token(group_dims, group_tokens, of_tokenizer(weights))
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
    tokenizer = GroupTokenizer(group_dims=group_dims, group_tokens=(1, 1), token_dim=6)
    tokens_BTD = tokenizer(groups_of(torch.randn(3, sum(group_dims)), group_dims))
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


def randomize(module):
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.normal_(0, 0.4)
    return module


def linear(weights, name):
    """Weight [in, out] and bias of an `nn.Linear`."""
    return weights[f"{name}.weight"].T, weights[f"{name}.bias"]


def stacked(weights, name, n):
    """Weight [in, out] and bias of the n-th map of a `StackedLinear`."""
    return weights[f"{name}.weight"][n], weights[f"{name}.bias"][n]


def group_mlps(group_dims, group_tokens, weights):
    """One list of layers a token of each group."""
    widths = sorted(set(group_dims))
    used = dict.fromkeys(widths, 0)
    mlps, tokens = [], 0
    for width, count in zip(group_dims, group_tokens, strict=True):
        hidden = stacked(weights, f"projections.{widths.index(width)}", used[width])
        mlps.append([[hidden, stacked(weights, "outputs", tokens + t)] for t in range(count)])
        used[width] += 1
        tokens += count
    return mlps


def with_global(tokenize, global_token):
    """`tokenize` as a reference of inputs and weights, with a global token where there is one."""

    def tokens(inputs, weights):
        weights = of_tokenizer(weights)
        x_BTD = tokenize(inputs["x_BW"], weights)
        if not global_token:
            return x_BTD
        layers = [linear(weights, "global_mlp.0"), linear(weights, "global_mlp.2")]
        return mlp_reference.with_global_token(inputs["x_BW"], x_BTD, layers)

    return tokens


def compare(matches_reference, tokenizer, tokenize, rows, dtype, group_dims):
    x_BW = torch.randn(rows, tokenizer.in_dim, dtype=torch.float64)
    of_row = OfRow(randomize(tokenizer), group_dims)
    assert of_row.to(dtype)(x_BW.to(dtype)).shape == (rows, tokenizer.num_tokens, tokenizer.token_dim)
    reference = with_global(tokenize, tokenizer.global_token)
    matches_reference(of_row, reference, {"x_BW": x_BW}, dtype, MLP_TOLERANCE[dtype])


def halves(in_dim):
    """Two groups of about equal width, or one of a single column."""
    return (in_dim // 2, in_dim - in_dim // 2) if in_dim > 1 else (1,)


all_forms = pytest.mark.parametrize(
    ("hidden_dim", "global_token", "rows", "dtype"),
    [
        (hidden_dim, global_token, rows, dtype)
        for dtype in MLP_TOLERANCE
        for hidden_dim, global_token, rows in ((None, False, 1), (None, True, 3), (3, False, 2), (4, True, 1))
    ],
)


@all_forms
@pytest.mark.parametrize(("group_dims", "group_tokens"), CASES)
def test_groups_match_reference(matches_reference, group_dims, group_tokens, hidden_dim, global_token, rows, dtype):
    torch.manual_seed(0)
    tokenizer = GroupTokenizer(
        group_dims=group_dims,
        group_tokens=group_tokens,
        token_dim=5,
        hidden_dim=hidden_dim,
        global_token=global_token,
    )
    assert tokenizer.num_tokens == sum(group_tokens) + global_token

    def tokenize(x_BW, weights):
        if hidden_dim is None:
            maps = weights_by_token(group_dims, group_tokens, weights)
            return reference.tokenize(x_BW, group_dims, group_tokens, *maps)
        return mlp_reference.group_tokens(x_BW, group_dims, group_mlps(group_dims, group_tokens, weights))

    compare(matches_reference, tokenizer, tokenize, rows, dtype, group_dims)


@all_forms
@pytest.mark.parametrize(("in_dim", "num_chunks"), [(12, 3), (11, 3), (10, 4), (5, 5), (4, 1), (1, 1)])
def test_chunks_match_reference(matches_reference, in_dim, num_chunks, hidden_dim, global_token, rows, dtype):
    torch.manual_seed(0)
    tokenizer = ChunkTokenizer(
        in_dim=in_dim, num_chunks=num_chunks, token_dim=5, hidden_dim=hidden_dim, global_token=global_token
    )
    assert tokenizer.num_tokens == num_chunks + global_token
    layers = ["projections"] if hidden_dim is None else ["projections", "outputs"]

    def tokenize(x_BW, weights):
        mlps = [[stacked(weights, layer, n) for layer in layers] for n in range(num_chunks)]
        return mlp_reference.chunk_tokens(x_BW, num_chunks, mlps)

    compare(matches_reference, tokenizer, tokenize, rows, dtype, halves(in_dim))


@all_forms
@pytest.mark.parametrize(("in_dim", "num_splits"), [(7, 3), (2, 1), (1, 4)])
def test_auto_split_matches_reference(matches_reference, in_dim, num_splits, hidden_dim, global_token, rows, dtype):
    torch.manual_seed(0)
    tokenizer = AutoSplitTokenizer(
        in_dim=in_dim, num_splits=num_splits, token_dim=5, hidden_dim=hidden_dim, global_token=global_token
    )
    assert tokenizer.num_tokens == num_splits + global_token
    layers = ["outputs"] if hidden_dim is None else ["hidden", "outputs"]

    def tokenize(x_BW, weights):
        return mlp_reference.auto_split_tokens(x_BW, num_splits, [linear(weights, layer) for layer in layers])

    compare(matches_reference, tokenizer, tokenize, rows, dtype, halves(in_dim))


KINDS = [
    lambda **form: GroupTokenizer(group_dims=(4, 6, 4), group_tokens=(2, 1, 1), token_dim=6, **form),
    lambda **form: ChunkTokenizer(in_dim=14, num_chunks=4, token_dim=6, **form),
    lambda **form: AutoSplitTokenizer(in_dim=14, num_splits=4, token_dim=6, **form),
]


@pytest.mark.parametrize("kind", KINDS)
def test_a_global_token_reads_every_feature_and_leaves_the_others_alone(kind):
    torch.manual_seed(0)
    tokenizer = kind(global_token=True)
    plain = kind()
    plain.load_state_dict({k: w for k, w in tokenizer.state_dict().items() if not k.startswith("global")})
    x_BW = torch.randn(2, 14, requires_grad=True)
    groups = groups_of(x_BW, (4, 6, 4))
    x_BTD = tokenizer(groups)
    assert torch.equal(x_BTD[:, 1:], plain(groups))
    (gradient,) = torch.autograd.grad(x_BTD[:, 0].square().sum(), x_BW)
    assert gradient.all()
    # A function of the row, not a parameter.
    assert not torch.allclose(x_BTD[0, 0], x_BTD[1, 0])


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("hidden_dim", [None, 8])
def test_casts_to_bf16_whole(kind, hidden_dim):
    tokenizer = kind(hidden_dim=hidden_dim, global_token=True).bfloat16()
    assert tokenizer.dtype == torch.bfloat16
    groups = groups_of(torch.randn(2, 14), (4, 6, 4))
    groups[0][0] = groups[0][0].bfloat16()  # as pooled sequences come, beside numerics in fp32
    assert tokenizer(groups).dtype == torch.bfloat16


@pytest.mark.parametrize("group_tokens", [(2, 1, 1), (1, 1, 1)])
@pytest.mark.parametrize("parts", [1, 2])
def test_groups_are_read_where_they_lie_with_the_bits_of_a_stack(group_tokens, parts):
    torch.manual_seed(0)
    tokenizer = GroupTokenizer(group_dims=(8, 8, 24), group_tokens=group_tokens, token_dim=16)
    groups = [[*torch.randn(129, dim).chunk(parts, dim=1)] for dim in (8, 8, 24)]
    whole = [torch.cat(group, dim=1) for group in groups]
    read = [whole[g] for g in (0, 1) for _ in range(group_tokens[g])]
    narrow, wide = tokenizer.projections
    expected_TBD = torch.cat([narrow(torch.stack(read)), wide(torch.stack(whole[2:]))])
    assert torch.equal(tokenizer(groups).transpose(0, 1), expected_TBD)


def test_slices_start_like_independent_linear_layers():
    torch.manual_seed(0)
    chunks = ChunkTokenizer(in_dim=250, num_chunks=2, token_dim=300)
    # Chunks of 84, 84 and 82.
    cut = ChunkTokenizer(in_dim=250, num_chunks=3, token_dim=600, hidden_dim=400)
    groups = GroupTokenizer(group_dims=(100, 100, 200), group_tokens=(1, 2, 1), token_dim=400, hidden_dim=300)
    split = AutoSplitTokenizer(in_dim=100, num_splits=3, token_dim=200)
    starts = [
        *((weight, 125) for weight in chunks.projections.weight),
        *zip(cut.projections.weight, (84, 84, 82), strict=True),
        *((weight, 400) for weight in cut.outputs.weight),
        *((weight, 100) for weight in groups.projections[0].weight),
        (groups.projections[1].weight[0], 200),
        *((weight, 300) for weight in groups.outputs.weight),
        (split.outputs.weight, 100),
    ]
    for weight, fan_in in starts:
        # Seen over ten seeds: 0.7 %.
        assert weight.std().item() == pytest.approx((3 * fan_in) ** -0.5, rel=0.02)


def test_the_last_chunk_starts_by_its_true_width():
    chunks = ChunkTokenizer(in_dim=301, num_chunks=4, token_dim=50)
    assert chunks.projections.fan_in == (76, 76, 76, 73)


def test_chunks_are_not_shared():
    chunks = ChunkTokenizer(in_dim=4, num_chunks=2, token_dim=3)
    x_BTD = chunks([[torch.ones(1, 4)]])
    assert not torch.allclose(x_BTD[:, 0], x_BTD[:, 1])


def test_chunks_that_would_be_empty_are_refused():
    with pytest.raises(ValueError, match="10 features fill only 5 of 6 chunks of width 2; use 5 chunks"):
        ChunkTokenizer(in_dim=10, num_chunks=6, token_dim=4)
    with pytest.raises(ValueError, match="2 features fill only 2 of 3 chunks"):
        ChunkTokenizer(in_dim=2, num_chunks=3, token_dim=4)


@pytest.mark.parametrize("kind", KINDS)
def test_a_row_of_another_width_is_refused(kind):
    with pytest.raises(RuntimeError):
        kind()(groups_of(torch.zeros(2, 13), (4, 5, 4)))


def test_sizes_below_one_are_refused():
    with pytest.raises(ValueError, match="hidden_dim 0 must be at least 1"):
        GroupTokenizer(group_dims=(4,), group_tokens=(1,), token_dim=4, hidden_dim=0)
    for sizes in ((0, 1, 1), (1, 0, 1), (1, 1, 0)):
        in_dim, count, token_dim = sizes
        with pytest.raises(ValueError, match="at least 1 each"):
            ChunkTokenizer(in_dim=in_dim, num_chunks=count, token_dim=token_dim)
        with pytest.raises(ValueError, match="at least 1 each"):
            AutoSplitTokenizer(in_dim=in_dim, num_splits=count, token_dim=token_dim)
