import pytest
import torch
from torch import nn

from rankmixer_dist.layers.interactions import AttentionInteraction
from rankmixer_dist.layers.reference import crosses as reference
from rankmixer_dist.models.dhen import DHEN, INTERACTIONS

TOLERANCE = {torch.float64: 8e-14, torch.float32: 1e-5}  # seen: 9.9e-15, 1.9e-6

OPTIONS = [
    {"interactions": ("dot",), "dot_hidden_dims": ()},
    {"interactions": ("cross",), "rank": 3},
    {"interactions": ("attention",), "num_heads": 2, "ffn_dim": 5},
    {"interactions": ("linear",), "tokens_per_module": 2},
    {"interactions": INTERACTIONS, "rank": 4, "num_heads": 3},
    {"interactions": ("linear", "dot", "cross"), "ensemble": "sum", "rank": 2, "hidden_dims": ()},
    {"interactions": ("linear", "attention"), "ensemble": "sum", "tokens_per_module": 4},
]


def randomize(module):
    """LayerNorms would start as ones and zeros."""
    with torch.no_grad():
        for name, parameter in module.named_parameters():
            if "norm" in name:
                parameter.normal_(1.0 if name.endswith("weight") else 0.0, 0.4)
    return module


def assert_matches(matches_reference, rows, num_tokens, token_dim, options, dtype):
    torch.manual_seed(0)
    options = {"num_layers": 2, "dot_hidden_dims": (7,), "hidden_dims": (9, 8), **options}
    model = DHEN(num_tokens=num_tokens, token_dim=token_dim, **options)
    x_BTD = torch.randn(rows, num_tokens, token_dim, dtype=torch.float64)
    matches_reference(
        randomize(model),
        lambda inputs, weights: reference.dhen(
            inputs["x_BTD"], weights, 2, model.interactions, model.ensemble, model.num_heads
        ),
        {"x_BTD": x_BTD},
        dtype,
        TOLERANCE[dtype],
    )
    assert model(x_BTD.to(dtype)).out_BD.shape == (rows, model.out_dim)


@pytest.mark.parametrize("dtype", TOLERANCE)
@pytest.mark.parametrize("options", OPTIONS, ids=str)
@pytest.mark.parametrize(("rows", "num_tokens", "token_dim"), [(3, 3, 6), (1, 1, 6)])
def test_backbone_matches_reference(matches_reference, rows, num_tokens, token_dim, options, dtype):
    assert_matches(matches_reference, rows, num_tokens, token_dim, options, dtype)


@pytest.mark.parametrize("dtype", TOLERANCE)
def test_odd_widths_match_reference(matches_reference, dtype):
    assert_matches(matches_reference, 2, 5, 3, {"rank": 6}, dtype)


@pytest.mark.parametrize("num_heads", [1, 3])
def test_the_attention_module_is_torchs_encoder_layer(num_heads):
    torch.manual_seed(0)
    theirs = nn.TransformerEncoderLayer(6, num_heads, dim_feedforward=9, dropout=0.0).double()
    ours = AttentionInteraction(in_tokens=4, out_tokens=4, token_dim=6, num_heads=num_heads, hidden_dim=9).double()
    pairs = [
        ("query_key_value", "self_attn.in_proj_"),
        ("project", "self_attn.out_proj."),
        ("attention_norm", "norm1."),
        ("up", "linear1."),
        ("down", "linear2."),
        ("ffn_norm", "norm2."),
    ]
    randomize(theirs)
    state = theirs.state_dict()
    with torch.no_grad():
        for own, name in pairs:
            module = ours.get_submodule(own)
            module.weight.copy_(state[f"{name}weight"])
            module.bias.copy_(state[f"{name}bias"].normal_(0, 0.4))
        ours.compress.weight.copy_(torch.eye(4))
    x_TBD = torch.randn(4, 3, 6, dtype=torch.float64)
    # Seen: 8.9e-16 on values up to 3.2.
    torch.testing.assert_close(ours(x_TBD), theirs(x_TBD), rtol=0, atol=8e-15)


def test_defaults_keep_the_number_of_tokens():
    model = DHEN(num_tokens=8, token_dim=16)
    assert model.tokens_per_module == 2
    assert all(isinstance(layer.shortcut, nn.Identity) for layer in model.layers)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"num_layers": 0}, "num_layers 0 must be at least 1"),
        ({"interactions": ()}, r"interactions \[\] must be some of"),
        ({"interactions": ("dot", "convolution")}, "interactions .*'convolution'.* must be some of"),
        ({"interactions": ("dot", "dot")}, "each once"),
        ({"ensemble": "mean"}, "ensemble 'mean' is unknown; use 'concat' or 'sum'"),
        ({"tokens_per_module": 0}, "tokens_per_module 0 must be at least 1"),
        ({"num_heads": 4}, "token_dim 3 is not a multiple of num_heads 4"),
        ({"num_heads": 0}, "num_heads 0 must be at least 1"),
        ({"ffn_dim": 0}, "ffn_dim 0 must be at least 1"),
        ({"rank": 13}, r"rank 13 must lie in 1\.\.12"),
        ({"dot_hidden_dims": (0,)}, r"hidden_dims \[0\]"),
        ({"hidden_dims": (0,)}, r"hidden_dims \[0\]"),
    ],
)
def test_impossible_options_are_refused(options, message):
    with pytest.raises(ValueError, match=message):
        DHEN(**{"num_tokens": 4, "token_dim": 3, "rank": 2, **options})
