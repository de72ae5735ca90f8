"""The options that stand for rows of the paper's Tables 2 and 3."""

import itertools
import math

import pytest
import torch

from rankmixer_dist.layers.per_token_ffn import PerTokenFFN
from rankmixer_dist.layers.reference import rankmixer as reference
from rankmixer_dist.layers.token_routing import AllShareFFN, ConcatMLP, TokenSelfAttention
from rankmixer_dist.models.rankmixer import RankMixer

TOLERANCE = {torch.float64: 1e-14, torch.float32: 1e-5}  # seen: 7.3e-15, 3.4e-6

MIXINGS = [
    {"mixing": "heads"},
    {"mixing": "heads", "shared_ffn": True},
    {"mixing": "none"},
    {"mixing": "none", "shared_ffn": True},
    {"mixing": "self_attention"},
    {"mixing": "self_attention", "num_heads": 2, "shared_ffn": True},
    {"mixing": "concat_mlp"},
    {"mixing": "share"},
]
SIZES = {"num_tokens": 3, "token_dim": 6, "num_blocks": 2, "hidden_dim": 7}


def randomize(module):
    with torch.no_grad():
        for name, parameter in module.named_parameters():
            parameter.normal_(1.0 if "norm.weight" in name else 0.0, 0.4)
    return module


def compare(matches_reference, dtype, rows=2, **options):
    torch.manual_seed(0)
    options = {"norm": "post", **options}
    names = {"skip": "skip", "mixing": "mixing", "num_heads": "num_heads", "shared_ffn": "shared"}
    forms = {names[option]: value for option, value in options.items() if option in names}
    matches_reference(
        randomize(RankMixer(**options)),
        lambda inputs, w: reference.rankmixer(inputs["x_BTD"], w, options["num_blocks"], options["norm"], **forms),
        {"x_BTD": torch.randn(rows, options["num_tokens"], options["token_dim"], dtype=torch.float64)},
        dtype,
        TOLERANCE[dtype],
    )


@pytest.mark.parametrize("dtype", TOLERANCE)
@pytest.mark.parametrize("skip", [True, False])
@pytest.mark.parametrize(
    ("norm", "norm_kind"), [("post", "layer"), ("post", "rms"), ("pre", "layer"), ("pre", "rms"), ("none", "layer")]
)
@pytest.mark.parametrize("mixing", MIXINGS, ids=lambda options: "-".join(map(str, options.values())))
def test_backbone_matches_reference(matches_reference, mixing, norm, norm_kind, skip, dtype):
    compare(matches_reference, dtype, **SIZES, **mixing, norm=norm, norm_kind=norm_kind, skip=skip)


@pytest.mark.parametrize("dtype", TOLERANCE)
@pytest.mark.parametrize("mixing", ["none", "self_attention", "concat_mlp", "share"])
@pytest.mark.parametrize(("rows", "num_tokens", "token_dim", "hidden_dim"), [(1, 1, 3, 2), (3, 4, 5, 1)])
def test_odd_sizes_match_reference(matches_reference, mixing, rows, num_tokens, token_dim, hidden_dim, dtype):
    heads = {"num_heads": 1} if mixing == "self_attention" else {}
    sizes = {"num_tokens": num_tokens, "token_dim": token_dim, "num_blocks": 1, "hidden_dim": hidden_dim}
    compare(matches_reference, dtype, rows, **sizes, **heads, mixing=mixing)


@pytest.mark.parametrize("dtype", TOLERANCE)
@pytest.mark.parametrize("norm", ["post", "pre", "none"])
@pytest.mark.parametrize(("num_tokens", "token_dim", "num_heads"), [(3, 8, 2), (2, 18, 3), (4, 5, 1)])
def test_without_residuals_heads_may_differ_from_tokens(
    matches_reference, num_tokens, token_dim, num_heads, norm, dtype
):
    sizes = {"num_tokens": num_tokens, "token_dim": token_dim, "num_blocks": 2, "hidden_dim": 3}
    compare(matches_reference, dtype, **sizes, num_heads=num_heads, skip=False, norm=norm)
    model = RankMixer(**sizes, num_heads=num_heads, skip=False, norm=norm)
    assert (
        model.out_dim
        == num_tokens * token_dim // num_heads
        == model(torch.randn(2, num_tokens, token_dim)).out_BD.shape[1]
    )


def test_self_attention_equals_torchs():
    torch.manual_seed(0)
    ours = TokenSelfAttention(token_dim=6, num_heads=3).double()
    theirs = torch.nn.MultiheadAttention(6, 3, dtype=torch.float64)
    theirs.load_state_dict(
        {
            "in_proj_weight": ours.qkv.weight,
            "in_proj_bias": ours.qkv.bias,
            "out_proj.weight": ours.out.weight,
            "out_proj.bias": ours.out.bias,
        }
    )
    x_TBD = torch.randn(4, 5, 6, dtype=torch.float64)
    # Seen: 1.1e-16.
    torch.testing.assert_close(ours(x_TBD), theirs(x_TBD, x_TBD, x_TBD)[0], rtol=0, atol=1e-15)


def test_defaults_start_with_the_same_draws_and_compute_the_same_as_eq_1():
    torch.manual_seed(0)
    model = RankMixer(num_tokens=4, token_dim=8, num_blocks=2, hidden_dim=12)
    torch.manual_seed(0)
    ffns = [PerTokenFFN(num_tokens=4, token_dim=8, hidden_dim=12) for _ in range(2)]
    names = [
        f"{layer}.{kind}" for layer in ("mixing_norm", "ffn.up", "ffn.down", "ffn_norm") for kind in ("weight", "bias")
    ]
    assert [*model.state_dict()] == [f"blocks.{n}.{name}" for n in range(2) for name in names]
    x_TBD = torch.randn(4, 3, 8)
    expected_TBD = x_TBD
    for ffn in ffns:
        mixed_TBD = expected_TBD.view(4, 3, 4, 2).permute(2, 1, 0, 3).reshape(4, 3, 8)
        s_TBD = torch.nn.functional.layer_norm(expected_TBD + mixed_TBD, (8,))
        expected_TBD = torch.nn.functional.layer_norm(s_TBD + ffn(s_TBD), (8,))
    assert torch.equal(model(x_TBD.transpose(0, 1)).out_BD, expected_TBD.mean(dim=0))


def test_table_2_and_3_in_parameters():
    """The routings of Table 3 weigh the same, biases apart; a shared FFN weighs a T-th."""
    sizes = {"num_tokens": 16, "token_dim": 64, "num_blocks": 2, "hidden_dim": 3 * 64}

    def weights(**options):
        return sum(p.numel() for name, p in RankMixer(**sizes, **options).named_parameters() if "weight" in name)

    mixer = weights()
    assert weights(mixing="concat_mlp") == mixer - 2 * 64  # a norm less
    assert weights(mixing="share") == pytest.approx(mixer, rel=0.03)  # 23 of 22.6 hidden units
    assert weights(mixing="none") == mixer - 2 * 64
    assert weights(shared_ffn=True) - 4 * 64 == (mixer - 4 * 64) / 16


def test_without_mixing_tokens_do_not_meet():
    model = RankMixer(**SIZES, mixing="none")
    x_BTD = torch.randn(2, 3, 6)
    changed = x_BTD.clone()
    changed[:, 1] += 1
    tokens, altered = (model.blocks[0](x.transpose(0, 1)) for x in (x_BTD, changed))
    assert torch.equal(tokens[[0, 2]], altered[[0, 2]])
    assert not torch.allclose(tokens[1], altered[1])


@pytest.mark.parametrize("mixing", ["heads", "self_attention", "concat_mlp", "share"])
def test_with_it_they_do(mixing):
    model = RankMixer(**SIZES, mixing=mixing)
    x_TBD = torch.randn(3, 2, 6)
    changed = x_TBD.clone()
    changed[1] = torch.randn(2, 6)
    tokens, altered = (model.blocks[0](x) for x in (x_TBD, changed))
    assert all((tokens[t] - altered[t]).abs().max() > 1e-4 for t in range(3))


def test_new_layers_start_like_independent_linear_layers():
    torch.manual_seed(0)
    concat = ConcatMLP(num_tokens=2, token_dim=100, hidden_dim=300)
    share = AllShareFFN(num_tokens=2, token_dim=100, hidden_dim=150)
    for weight, fan_in in (
        (concat.up.weight, 200),
        (concat.down.weight, 300),
        (share.up.weight, 200),
        (share.down.weight[0], 150),
        (share.down.weight[1], 150),
    ):
        # Seen over ten seeds: 0.8 %.
        assert weight.std().item() == pytest.approx(1 / math.sqrt(3 * fan_in), rel=0.02)


@pytest.mark.parametrize("mixing", ["self_attention", "concat_mlp", "share"])
def test_bf16_pools_in_fp32(mixing):
    torch.manual_seed(0)
    model = RankMixer(num_tokens=4, token_dim=32, num_blocks=2, hidden_dim=64, mixing=mixing, norm_kind="rms")
    model.bfloat16()
    x_BTD = torch.randn(8, 4, 32).bfloat16()
    pooled_BD = model(x_BTD).out_BD
    assert pooled_BD.dtype == torch.float32
    # Seen: 0.0083 on values up to 1.6.
    torch.testing.assert_close(pooled_BD, model.float()(x_BTD.float()).out_BD, rtol=0, atol=0.05)


def test_impossible_options_are_refused():
    for options, match in (
        ({"num_heads": 2}, "num_heads 2 must be the number of tokens, 3: the residual adds"),
        ({"num_heads": 4, "skip": False}, "token_dim 6 is not a multiple of the 4 heads"),
        ({"num_heads": 2, "skip": False}, "the second block splits 2 tokens of width 9 into 2 heads"),
        ({"mixing": "none", "num_heads": 3}, "'none' has no heads"),
        ({"mixing": "concat_mlp", "shared_ffn": True}, "'concat_mlp' replaces the per-token FFN"),
        ({"mixing": "share", "shared_ffn": True}, "'share' replaces the per-token FFN"),
        ({"mixing": "conv"}, "mixing 'conv' is unknown; use one of heads, self_attention"),
        ({"mixing": "self_attention", "num_heads": 4}, "token_dim 6 is not a multiple of the 4 attention heads"),
        ({"mixing": "self_attention", "num_heads": 0}, "num_heads 0"),
        ({"mixing": "share", "hidden_dim": 0}, "hidden_dim 0"),
        ({"norm_kind": "batch"}, "norm_kind 'batch' is unknown"),
    ):
        with pytest.raises(ValueError, match=match):
            RankMixer(**{**SIZES, **options})


@pytest.mark.parametrize("sizes", list(itertools.product((0, 1), repeat=3))[:-1])
def test_layers_refuse_sizes_below_one(sizes):
    for layer in (ConcatMLP, AllShareFFN):
        with pytest.raises(ValueError, match="below 1"):
            layer(**dict(zip(("num_tokens", "token_dim", "hidden_dim"), sizes, strict=True)))
